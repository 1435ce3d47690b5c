"""The common part of tuners that route tokens: a record of what their routers decide, and losses on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import nn

from waver.entropy.routing import balance_loss


class AdapterKind(str):
    """The name of a type of adapter, as PEFT's enumeration has them for its own."""

    @property
    def value(self) -> str:
        return str(self)


def make_known(config: Any, model: type[BaseTuner]) -> None:
    """Let PEFT make, save and load adapters of a type of ours."""
    # PEFT's `register_peft_method` takes the names of its own enumeration alone.
    PEFT_TYPE_TO_CONFIG_MAPPING[config.kind_of_adapter] = config
    PEFT_TYPE_TO_TUNER_MAPPING[config.kind_of_adapter] = model
    PEFT_TYPE_TO_PREFIX_MAPPING[config.kind_of_adapter] = model.prefix


@dataclass(frozen=True)
class Decision:
    """The decision of one router about the tokens of a pass.

    Args:
        entropy: `[..., tokens]`, normalised. probabilities, weights: `[..., tokens, experts]`, before and after the
            choice of experts. mask: `[..., tokens]`, where tokens are real; None: everywhere.
    """

    entropy: torch.Tensor
    probabilities: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor | None


@dataclass
class Recorder:
    """Keeps the decisions of all routers of a model in the passes inside `recording`."""

    on: bool = False
    mask: torch.Tensor | None = None
    found: list[Decision] = field(default_factory=list)

    def add(self, entropy: torch.Tensor, probabilities: torch.Tensor, weights: torch.Tensor) -> None:
        """Keep a decision, if somebody asked for it."""
        if self.on:
            fits = self.mask is not None and self.mask.shape == entropy.shape
            self.found.append(Decision(entropy, probabilities, weights, self.mask if fits else None))

    @contextmanager
    def recording(self) -> Iterator[list[Decision]]:
        """Keep what is decided inside; the list receives it."""
        self.on, self.found = True, []
        try:
            yield self.found
        finally:
            self.on = False


@dataclass(frozen=True)
class RouterLosses:
    """Losses over all routers of a model, and what they come to with their weights."""

    entropy: torch.Tensor
    balance: torch.Tensor
    total: torch.Tensor


class RoutedLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear layer with adapters that route tokens: y = W x + update(x).

    Raises:
        TypeError: the layer is no `torch.nn.Linear`.
    """

    # What PEFT's mixin has, whose types are not known.
    active_adapters: Any
    adapter_layer_names: Any
    disable_adapters: Any
    get_base_layer: Any
    merged: Any
    set_adapter: Any
    _active_adapter: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_features(self)
        self.configs: dict[str, Any] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter that changes nothing yet."""
        raise NotImplementedError

    def update(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        """Compute what an adapter adds for each token, `[..., in]` -> `[..., out]`."""
        raise NotImplementedError

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return the update of the weights, `[out, in]`, of an adapter that has one and the same for all tokens."""
        raise NotImplementedError

    def _has(self, adapter: str) -> bool:
        return adapter in getattr(self, self.adapter_layer_names[0])

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if self._has(name):
                result = result + self.update(name, x).to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of adapters to the weights."""
        for name in check_adapters_to_merge(self, adapter_names):
            if self._has(name):
                self._add(self.get_delta_weight(name))
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take the updates out of the weights again."""
        while self.merged_adapters:
            self._add(-self.get_delta_weight(self.merged_adapters.pop()))

    @torch.no_grad()
    def _add(self, delta: torch.Tensor) -> None:
        weight = self.get_base_layer().weight
        weight += delta.to(weight.dtype)


class RoutedTuner(BaseTuner):  # type: ignore[misc]
    """A tuner with routers. Its layers hold `recorder` and give their decisions to it."""

    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    recorder: Recorder

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.recorder = Recorder()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        self.recorder.mask = mask.bool() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        return super().forward(*args, **kwargs)

    def _wrap(self, layer: nn.Module) -> RoutedLayer:
        """Make the layer with adapters of a layer of the model."""
        made: RoutedLayer = self.tuner_layer_cls(layer)
        return made

    def _create_and_replace(
        self,
        config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, config)
            return
        made = self._wrap(target)
        made._active_adapter = adapter_name
        made.update_layer(adapter_name, config)
        if adapter_name not in self.active_adapters:
            made.requires_grad_(False)
        self._replace_module(parent, target_name, made, target)

    @property
    def mergeable(self) -> bool:
        """Tell whether the update is the same for all tokens, so that it can be added to the weights."""
        raise NotImplementedError

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        if not self.mergeable:
            raise ValueError(
                "this adapter updates each token otherwise, so that it cannot be merged into weights: serve it as an "
                "adapter, with `backend: transformers`"
            )

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        self._check_merge_allowed()
        super().merge_adapter(*args, **kwargs)

    @staticmethod
    def entropies(decisions: list[Decision], ends: list[int]) -> list[float | None]:
        """Return the mean entropy of all routers at one place of each row of a pass; None where the pass was cut."""
        fitting = [each.entropy for each in decisions if each.entropy.ndim == 2 and len(each.entropy) == len(ends)]
        if not fitting or len({each.shape for each in fitting}) > 1 or len(fitting) < len(decisions):
            return [None] * len(ends)
        mean = torch.stack(fitting).float().mean(0)
        return mean[torch.arange(len(ends)), torch.tensor(ends)].tolist()

    def losses(self, decisions: list[Decision]) -> RouterLosses:
        """Compute the losses of decisions, over the real tokens of all routers together: the mean normalised entropy,
        the imbalance of the experts, and their sum with the weights of the active adapter's configuration.

        Raises:
            RuntimeError: there are no decisions.
        """
        config: Any = self.peft_config[self.active_adapters[0]]
        kept = [_flat(each, config.mask_padding) for each in decisions]
        if not kept:
            raise RuntimeError("no router was in a pass: is the adapter switched off, or checkpointing reentrant?")
        entropy, p, weights = (torch.cat(part) for part in zip(*kept, strict=True))
        mean, balance = entropy.mean(), balance_loss(p, weights)
        return RouterLosses(mean, balance, config.entropy_weight * mean + config.balance_weight * balance)


def _flat(each: Decision, masked: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    real = each.mask if masked and each.mask is not None else torch.ones_like(each.entropy, dtype=torch.bool)
    return each.entropy[real], each.probabilities[real], each.weights[real]


@dataclass(frozen=True)
class Usage:
    """Sums over the routers of a model on texts: the mean normalised entropy (a sign of uncertainty), the number of
    experts of a token, the share of tokens that go to all, and the share of the weight of each expert."""

    entropy: float
    active: float
    everywhere: float
    shares: list[float]


@torch.no_grad()
def usage(decisions: list[Decision]) -> Usage:
    """Sum up decisions, over real tokens."""
    entropy, _, weights = (torch.cat(part) for part in zip(*(_flat(each, True) for each in decisions), strict=True))
    chosen = weights > 0
    shares = weights.float().mean(0)
    return Usage(
        float(entropy.float().mean()),
        float(chosen.sum(-1).float().mean()),
        float(chosen.all(-1).float().mean()),
        (shares / shares.sum()).tolist(),
    )


def base_features(layer: BaseTunerLayer) -> tuple[int, int]:
    """Return the inputs and outputs of the linear layer that a tuner's layer wraps.

    Raises:
        TypeError: it is no `torch.nn.Linear`.
    """
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear):
        raise TypeError(f"adapters that route tokens are for torch.nn.Linear, not for {type(base).__name__}")
    return base.in_features, base.out_features


def drop(rate: float) -> nn.Module:
    return nn.Dropout(rate) if rate > 0 else nn.Identity()
