"""DynMoLE (arXiv 2504.00661) as a tuner of PEFT: small LoRA experts on each layer, more of them where the router is
uncertain.

A router on each adapted layer weighs the experts of every token. Where its Tsallis entropy is high the token goes to
all of them, else to the few that cover most of the probability (`waver.entropy.routing`). Losses on the entropy and on
the balance of the experts train the routers: `RoutedTuner.losses`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from peft.config import PeftConfig
from torch import nn

from waver.engines.tuners.routing import AdapterKind, Recorder, RoutedLayer, RoutedTuner, drop, make_known
from waver.entropy.routing import Kind, RoutingRule, route


@dataclass
class DynMoleConfig(PeftConfig):  # type: ignore[misc]
    """Configuration of `DynMoleModel`.

    Args:
        r, alpha, dropout: of each expert; its update is scaled by alpha / r. experts: how many on each layer.
            target_modules, exclude_modules: as in PEFT's `LoraConfig`. q, threshold, top_p, keep, eps, kind, crossing,
            renormalise: the rule of `waver.entropy.routing.RoutingRule`. entropy_weight, balance_weight: of the
            losses. mask_padding: leave padding out of them.
    """

    kind_of_adapter: ClassVar[AdapterKind] = AdapterKind("DYNMOLE")
    r: int = 24
    alpha: float = 48
    dropout: float = 0.05
    experts: int = 6
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    q: float = 1.1
    threshold: float = 0.9
    top_p: float = 0.75
    keep: int = 2
    eps: float = 1e-5
    kind: Kind = "tsallis"
    crossing: bool = False
    renormalise: bool = False
    entropy_weight: float = 0.01
    balance_weight: float = 0.001
    mask_padding: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.kind_of_adapter
        if isinstance(self.target_modules, list):
            self.target_modules = sorted(self.target_modules)
        if min(self.r, self.experts, self.keep) < 1 or not 0 < self.q <= 2 or not 0 < self.top_p <= 1:
            raise ValueError("DynMoLE needs r, experts and keep of at least 1, 0 < q <= 2 and 0 < top_p <= 1")

    @property
    def rule(self) -> RoutingRule:
        """Return the rule of routing."""
        names = ("q", "threshold", "top_p", "keep", "eps", "kind", "crossing", "renormalise")
        return RoutingRule(**{name: getattr(self, name) for name in names})


class DynMoleLayer(RoutedLayer):
    """A linear layer with experts: y = W x + sum_e w_e (alpha / r) B_e A_e dropout(x).

    Weights, by adapter: router `[experts, in]`, A `[experts, r, in]`, B `[experts, out, r]`.
    """

    adapter_layer_names = ("dynmole_router", "dynmole_A", "dynmole_B")
    other_param_names = ("dynmole_dropout",)

    def __init__(self, base_layer: nn.Module, recorder: Recorder) -> None:
        super().__init__(base_layer)
        self.recorder = recorder
        self.dynmole_router, self.dynmole_A, self.dynmole_B = (nn.ParameterDict() for _ in range(3))
        self.dynmole_dropout = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: DynMoleConfig) -> None:
        """Add an adapter that changes nothing yet: B is 0, router and A are Kaiming-uniform."""
        experts, rank = config.experts, config.r
        router = nn.init.kaiming_uniform_(torch.empty(experts, self.in_features), a=math.sqrt(5))
        down = torch.stack(
            [nn.init.kaiming_uniform_(torch.empty(rank, self.in_features), a=math.sqrt(5)) for _ in range(experts)]
        )
        self.configs[adapter_name] = config
        self.dynmole_router[adapter_name] = nn.Parameter(router)
        self.dynmole_A[adapter_name] = nn.Parameter(down)
        self.dynmole_B[adapter_name] = nn.Parameter(torch.zeros(experts, self.out_features, rank))
        self.dynmole_dropout[adapter_name] = drop(config.dropout)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.dynmole_router[adapter_name].data = self.dynmole_router[adapter_name].data.float()
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def update(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        config, down, up = self.configs[adapter], self.dynmole_A[adapter], self.dynmole_B[adapter]
        router = self.dynmole_router[adapter]
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 experts would tie
            p = (x.to(router.dtype) @ router.T).softmax(-1)
            weights, entropy = route(p, config.rule)
        self.recorder.add(entropy, p, weights)
        inner = self.dynmole_dropout[adapter](x.to(down.dtype)) @ down.flatten(0, 1).T
        scaled = (config.alpha / config.r * weights).to(inner.dtype)
        weighed: torch.Tensor = inner.unflatten(-1, down.shape[:2]) * scaled.unsqueeze(-1)
        found: torch.Tensor = weighed.flatten(-2) @ up.permute(0, 2, 1).flatten(0, 1)
        return found

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return the update of the weights, `[out, in]`; a single expert has one, as its weight is 1 for all tokens."""
        config = self.configs[adapter]
        delta: torch.Tensor = config.alpha / config.r * (self.dynmole_B[adapter][0] @ self.dynmole_A[adapter][0])
        return delta


class DynMoleModel(RoutedTuner):
    """Puts DynMoLE's experts on the layers of a model."""

    prefix = "dynmole_"
    tuner_layer_cls = DynMoleLayer

    def _wrap(self, layer: nn.Module) -> DynMoleLayer:
        return DynMoleLayer(layer, self.recorder)

    @property
    def mergeable(self) -> bool:
        return all(self.peft_config[name].experts == 1 for name in self.active_adapters)


make_known(DynMoleConfig, DynMoleModel)
