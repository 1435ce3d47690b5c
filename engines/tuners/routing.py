"""The common part of tuners that route tokens: a record of what their routers decide, and losses on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
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
