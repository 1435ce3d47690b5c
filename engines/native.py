"""Run sequences with a model's own kind of cache: recurrent states, hybrid caches, or none at all.

One row a pass, for models whose cache does not fit slots (`waver.engines.runner` decides). Slower, but correct for
every model that transformers loads.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.generation.utils import ALL_CACHE_NAMES


@dataclass(slots=True)
class CacheState:
    """The tokens that a model has read, and its cache, by the name of the argument that takes it."""

    tokens: list[int] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


class NativeRunner:
    """Implements `waver.engines.runner.Runner`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._states: dict[int, CacheState] = {}
        # A recurrent state advances one token at a time, as not every such model can take several.
        self._stride = 1 if model._is_stateful else None
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def extend(self, slots: list[int], starts: list[int], tokens: list[list[int]]) -> torch.Tensor:
        return self.extend_and_read(slots, starts, tokens, {})[0]

    def extend_and_read(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], places: Mapping[int, int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        logits, states = [], {}
        for i, (slot, start, row) in enumerate(zip(slots, starts, tokens, strict=True)):
            outputs = self._append(slot, start, row, output_hidden_states=i in places)
            logits.append(outputs[-1][1].logits[0, -1])
            if i in places:
                states[i] = torch.cat([layer_output(output, None)[0, -count:] for count, output in outputs])[places[i]]
        return torch.stack(logits), states

    def read(self, slot: int, start: int, tokens: list[int]) -> torch.Tensor:
        outputs = self._append(slot, start, tokens)
        return torch.cat([output.logits[0, -count:] for count, output in outputs])

    def states(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], depths: Sequence[float | None]
    ) -> torch.Tensor:
        rows = []
        for slot, start, row, depth in zip(slots, starts, tokens, depths, strict=True):
            _, last = self._append(slot, start, row, output_hidden_states=True)[-1]
            rows.append(layer_output(last, depth)[0, -1])
        return torch.stack(rows)

    def copy(self, source: int, target: int, length: int) -> int:
        cached = self._states[source]
        if len(cached.tokens) != length:
            return 0
        if source != target:
            self._states[target] = copy.deepcopy(cached)
        return length

    def _begin(self, slot: int) -> CacheState:
        """Make the state of a slot whose sequence begins."""
        return CacheState()

    def _append(self, slot: int, start: int, tokens: list[int], **options: bool) -> list[tuple[int, Any]]:
        """Read tokens in as many passes as needed; for each the number of tokens and the model's output."""
        if start == 0:
            self._states[slot] = self._begin(slot)
        cached = self._states[slot]
        stride = self._stride if cached.state and self._stride else len(tokens)
        parts = (tokens[i : i + stride] for i in range(0, len(tokens), stride))
        return [(len(part), self._pass(cached, part, options)) for part in parts]

    def _pass(self, cached: CacheState, tokens: list[int], options: dict[str, bool]) -> Any:
        cached.tokens = cached.tokens + tokens
        ids = torch.tensor([cached.tokens], device=self.model.device)
        inputs: dict[str, Any] = {"attention_mask": torch.ones_like(ids), **cached.state}
        if self._takes_positions:
            inputs["position_ids"] = torch.arange(ids.shape[1], device=ids.device)[None]
        unread = len(tokens) if cached.state else None
        output = self.model(**self._prepare(ids, unread, not cached.state, inputs), **options)
        self._keep(cached, output)
        return output

    def _prepare(self, ids: torch.Tensor, unread: int | None, first: bool, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Make a pass's inputs. Some models keep nothing, and some drop what they keep when a sequence outgrows it:
        `generate` knows which."""
        prepare = cast(Callable[..., dict[str, Any]], self.model.prepare_inputs_for_generation)
        return prepare(ids, next_sequence_length=unread, is_first_iteration=first, **{"use_cache": True, **inputs})

    def _keep(self, cached: CacheState, output: Any) -> None:
        cached.state = {name: kept for name in ALL_CACHE_NAMES if (kept := output.get(name)) is not None}


def layer_output(output: Any, depth: float | None) -> torch.Tensor:
    """Select the hidden states `[rows, tokens, hidden]` behind a share of the layers from a model's output. The first
    it has are its embeddings; the last come after the final norm, and are what None selects."""
    last: torch.Tensor | None = output.get("last_hidden_state")
    if depth is None and last is not None:
        return last
    states: Sequence[torch.Tensor] = output.hidden_states
    return states[int((1.0 if depth is None else depth) * (len(states) - 1))]
