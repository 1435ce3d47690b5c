"""Queryable LoRA (arXiv 2605.08423) as a tuner of PEFT: the small operator between a LoRA's two matrices is mixed for
each token.

Layers keep their own down- and up-projections A and B. Layers of one kind (all `q_proj`, all `v_proj`, ...) form a
chain of blocks and share K atoms, operators `[r, r]`. At the first layer of a block each token asks with its low-rank
state and a summary of what earlier blocks did, and gets a convex combination of few atoms for all layers of the block:

    y = W h + s B M A h,   M = sum_k w_k U_k

The paper's text was not at hand: shapes, initial values and defaults are a reconstruction from its abstract.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft.config import PeftConfig
from torch import nn

from waver.engines.tuners.routing import AdapterKind, RoutedLayer, RoutedTuner, drop, make_known
from waver.entropy.routing import convex_weights, routing_entropy

FLOOR = 1e-3
"""Least probability of an atom in a prior that is made from an instruction."""


@dataclass
class QueryableLoraConfig(PeftConfig):  # type: ignore[misc]
    """Configuration of `QueryableLoraModel`.

    Args:
        r, alpha, dropout: of the LoRA; the update is scaled by alpha / r. atoms: operators that the layers of a kind
            share. top: atoms of a token; None: all. block: layers of a kind that use one operator. query: width of
            queries and keys; None: 2 r. summary: let queries see what earlier blocks did. beta: weight of a prior over
            atoms; 0 turns it off. instruction: width of the embeddings that priors are made from; None: priors are
            given. temperature: of these. target_modules, exclude_modules: as in PEFT's `LoraConfig`. entropy_weight,
            balance_weight: of losses on the routing, off unless given. mask_padding: leave padding out of them.
    """

    kind_of_adapter: ClassVar[AdapterKind] = AdapterKind("QUERYABLE_LORA")
    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    atoms: int = 16
    top: int | None = 2
    block: int = 4
    query: int | None = None
    summary: bool = True
    beta: float = 1.0
    instruction: int | None = None
    temperature: float = 1.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    entropy_weight: float = 0.0
    balance_weight: float = 0.0
    mask_padding: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.kind_of_adapter
        if isinstance(self.target_modules, list):
            self.target_modules = sorted(self.target_modules)
        if min(self.r, self.atoms, self.block, self.top or 1, self.width) < 1:
            raise ValueError("Queryable LoRA needs r, atoms, top, block and query of at least 1")

    @property
    def width(self) -> int:
        """Return the width of queries and keys."""
        return 2 * self.r if self.query is None else self.query


def depth_summary(state: torch.Tensor, earlier: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """Attend over what earlier blocks did: m = sum_j a_j v_j with a = softmax_j((W_s' z) . v_j / sqrt(r)).

    Args:
        state: z, `[..., r]`. earlier: v, `[..., blocks, r]`. mixing: W_s, `[r, r]`.
    """
    scores = (earlier @ (state @ mixing).unsqueeze(-1)).squeeze(-1) / math.sqrt(state.shape[-1])
    return (scores.softmax(-1).unsqueeze(-1) * earlier).sum(-2)


def query_logits(asked: torch.Tensor, query: torch.Tensor, bias: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Compute the logits of atoms, `[..., atoms]`: keys (W_Q [z; m] + c) / sqrt(d_q).

    Args:
        asked: `[..., 2 r]`. query: `[d_q, 2 r]`. bias: `[d_q]`. keys: `[atoms, d_q]`.
    """
    return (asked @ query.T + bias) @ keys.T / math.sqrt(keys.shape[-1])


class Chain:
    """The layers of one kind in one adapter, in order, in a pass: the operator of each block and its last state.

    They are kept by block, and dropped when a pass comes to the first layer.
    """

    def __init__(self, tuner: QueryableLoraModel, adapter: str, kind: int) -> None:
        self.tuner, self.adapter, self.kind = tuner, adapter, kind
        self.operators: dict[int, torch.Tensor] = {}
        self.states: dict[int, torch.Tensor] = {}

    def update(self, state: torch.Tensor, place: int, last: bool) -> torch.Tensor:
        """Return M z of a token's low-rank state at the layer `place` of the chain, `[..., r]`."""
        size = self.tuner.peft_config[self.adapter].block
        block, inside = divmod(place, size)
        if place == 0:
            self.operators, self.states = {}, {}
        if inside == 0:
            earlier = [self.states[each] for each in range(block)]
            self.operators[block] = self.tuner.operator(self.adapter, self.kind, block, state, earlier)
        routed = (self.operators[block] @ state.unsqueeze(-1)).squeeze(-1)
        if last or inside == size - 1:
            self.states[block] = routed
        return routed


class QueryableLoraLayer(RoutedLayer):
    """A linear layer with a LoRA, A `[r, in]` and B `[out, r]`, whose middle comes from the chain it is part of."""

    adapter_layer_names = ("queryable_A", "queryable_B")
    other_param_names = ("queryable_dropout",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.queryable_A, self.queryable_B = nn.ParameterDict(), nn.ParameterDict()
        self.queryable_dropout = nn.ModuleDict()
        self.places: dict[str, tuple[Chain, int, bool]] = {}

    def update_layer(self, adapter_name: str, config: QueryableLoraConfig) -> None:
        """Add an adapter that changes nothing yet: B is 0."""
        bound = 1 / math.sqrt(self.in_features)
        self.configs[adapter_name] = config
        self.queryable_A[adapter_name] = nn.Parameter(torch.empty(config.r, self.in_features).uniform_(-bound, bound))
        self.queryable_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, config.r))
        self.queryable_dropout[adapter_name] = drop(config.dropout)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def update(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        config, down, up = self.configs[adapter], self.queryable_A[adapter], self.queryable_B[adapter]
        chain, place, last = self.places[adapter]
        state = (self.queryable_dropout[adapter](x.to(down.dtype)) @ down.T).float()
        found: torch.Tensor = config.alpha / config.r * (chain.update(state, place, last).to(up.dtype) @ up.T)
        return found

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return the update of the weights, `[out, in]`, of an adapter with a single atom, which all tokens get."""
        config, (chain, _, _) = self.configs[adapter], self.places[adapter]
        atom = chain.tuner.queryable_atoms[adapter][chain.kind, 0].to(self.queryable_A[adapter].dtype)
        delta: torch.Tensor = config.alpha / config.r * (self.queryable_B[adapter] @ atom @ self.queryable_A[adapter])
        return delta


class QueryableLoraModel(RoutedTuner):
    """Puts Queryable LoRA on the layers of a model.

    What layers share lies here, by adapter and stacked over the kinds of layers: atoms `[kinds, K, r, r]`, keys
    `[kinds, K, d_q]`, query `[kinds, d_q, 2 r]`, mixing W_s `[kinds, r, r]`, bias `[kinds, blocks, d_q]`, and for
    priors from instructions `reading` W_I `[kinds, embedding, d_q]` and `described` `[kinds, K, d_q]`.
    """

    prefix = "queryable_"
    tuner_layer_cls = QueryableLoraLayer
    uses_shared_state = True
    SHARED = ("atoms", "keys", "query", "mixing", "bias", "reading", "described")

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        for name in self.SHARED:
            setattr(self, f"{self.prefix}{name}", nn.ParameterDict())
        self._prior: torch.Tensor | None = None
        self._instructions: torch.Tensor | None = None

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._link(model, adapter_name)

    def _link(self, model: nn.Module, adapter: str) -> None:
        """Put the layers of an adapter into chains by kind, and make what they share."""
        config: Any = self.peft_config[adapter]
        kinds: dict[str, list[QueryableLoraLayer]] = {}
        for name, module in model.named_modules():
            if isinstance(module, QueryableLoraLayer) and adapter in module.queryable_A:
                kinds.setdefault(name.rpartition(".")[2], []).append(module)
        for number, kind in enumerate(sorted(kinds)):
            chain = Chain(self, adapter, number)
            for place, layer in enumerate(kinds[kind]):
                layer.places[adapter] = chain, place, place == len(kinds[kind]) - 1
        blocks = max(-(-len(layers) // config.block) for layers in kinds.values())
        device = next(iter(kinds.values()))[0].queryable_A[adapter].device
        for name, value in _shared(config, len(kinds), blocks).items():
            made = nn.Parameter(value.to(device), requires_grad=not config.inference_mode)
            getattr(self, f"{self.prefix}{name}")[adapter] = made

    @property
    def mergeable(self) -> bool:
        return all(self.peft_config[name].atoms == 1 for name in self.active_adapters)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled() and getattr(self.model, "is_gradient_checkpointing", False):
            raise ValueError(
                "layers of Queryable LoRA share operators within a pass, which gradient checkpointing would compute "
                "again apart from each other: set gradient_checkpointing=False"
            )
        return super().forward(*args, **kwargs)

    @contextmanager
    def prior(self, probabilities: torch.Tensor) -> Iterator[None]:
        """Prefer atoms in the passes inside.

        Args:
            probabilities: over atoms, positive: `[atoms]`, or `[rows, atoms]` for each row of a batch.
        """
        log = probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()
        self._prior = log if log.ndim == 1 else log.unsqueeze(1)
        try:
            yield
        finally:
            self._prior = None

    @contextmanager
    def instructed(self, embeddings: torch.Tensor) -> Iterator[None]:
        """Prefer the atoms that instructions describe, in the passes inside.

        Args:
            embeddings: of the rows' instructions by a frozen encoder, `[rows, embedding]`.

        Raises:
            ValueError: the configuration has no `instruction` width.
        """
        if getattr(self.peft_config[self.active_adapters[0]], "instruction", None) is None:
            raise ValueError("this adapter has no priors from instructions: set `instruction` to the embeddings' width")
        self._instructions = embeddings
        try:
            yield
        finally:
            self._instructions = None

    def operator(
        self, adapter: str, kind: int, block: int, state: torch.Tensor, earlier: list[torch.Tensor]
    ) -> torch.Tensor:
        """Mix the operator of a block for each token, `[..., r, r]`.

        Args:
            state: z, `[..., r]`. earlier: what the blocks before did, each `[..., r]`.
        """
        config: Any = self.peft_config[adapter]
        atoms, keys, query, mixing, bias = (
            getattr(self, f"{self.prefix}{name}")[adapter][kind] for name in self.SHARED[:5]
        )
        summary = torch.zeros_like(state)
        if config.summary and earlier:
            summary = depth_summary(state, torch.stack(earlier, -2), mixing)
        logits = query_logits(torch.cat([state, summary], -1), query, bias[block], keys)
        log_prior = self._log_prior(adapter, kind) if config.beta else None
        weights = convex_weights(logits, config.top, log_prior, config.beta)
        if self.recorder.on:
            dense = convex_weights(logits, None, log_prior, config.beta)
            self.recorder.add(routing_entropy(dense, 1.0, 0.0), dense, weights)
        mixed: torch.Tensor = (weights @ atoms.flatten(1)).unflatten(-1, atoms.shape[1:])
        return mixed

    def _log_prior(self, adapter: str, kind: int) -> torch.Tensor | None:
        if self._instructions is None:
            return self._prior
        config: Any = self.peft_config[adapter]
        reading, described = (getattr(self, f"{self.prefix}{name}")[adapter][kind] for name in self.SHARED[5:])
        pi = (self._instructions.to(reading.dtype) @ reading @ described.T / config.temperature).softmax(-1)
        floored = pi.clamp(min=FLOOR)
        log: torch.Tensor = (floored / floored.sum(-1, keepdim=True)).log()
        return log.unsqueeze(1)


def _shared(config: QueryableLoraConfig, kinds: int, blocks: int) -> dict[str, torch.Tensor]:
    """Draw what layers share: atoms near the identity, random keys and queries, no bias, W_s the identity."""
    r, k, d = config.r, config.atoms, config.width
    made = {
        "atoms": torch.eye(r) + 0.3 * torch.randn(kinds, k, r, r) / math.sqrt(r),
        "keys": torch.randn(kinds, k, d),
        "query": torch.randn(kinds, d, 2 * r) / math.sqrt(2 * r),
        "mixing": torch.eye(r).repeat(kinds, 1, 1),
        "bias": torch.zeros(kinds, blocks, d),
    }
    if config.instruction is not None:
        made["reading"] = torch.randn(kinds, config.instruction, d) / math.sqrt(config.instruction)
        made["described"] = torch.randn(kinds, k, d) / math.sqrt(d)
    return made


make_known(QueryableLoraConfig, QueryableLoraModel)
