"""Sequences in a model's own kind of memory: recurrent states, hybrid caches, or none at all.

One row a pass, for models whose memory does not fit slots (`waver.engines.runner` decides). Slower, but right for
whatever transformers loads.
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
class Memory:
    """What a model has read, and what it keeps of it, by the name of the argument that hands it back."""

    tokens: list[int] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


class NativeRunner:
    """Implements `waver.engines.runner.Runner`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._memory: dict[int, Memory] = {}
        # A recurrent state goes on one token at a time: not every such model can take several.
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
                states[i] = torch.cat([behind(output, None)[0, -count:] for count, output in outputs])[places[i]]
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
            rows.append(behind(last, depth)[0, -1])
        return torch.stack(rows)

    def copy(self, source: int, target: int, length: int) -> int:
        memory = self._memory[source]
        if len(memory.tokens) != length:
            return 0
        if source != target:
            self._memory[target] = copy.deepcopy(memory)
        return length

    def _append(self, slot: int, start: int, tokens: list[int], **options: bool) -> list[tuple[int, Any]]:
        """The passes that it takes: how many tokens each read, and the model's output."""
        if start == 0:
            self._memory[slot] = Memory()
        memory = self._memory[slot]
        stride = self._stride if memory.state and self._stride else len(tokens)
        parts = (tokens[i : i + stride] for i in range(0, len(tokens), stride))
        return [(len(part), self._pass(memory, part, options)) for part in parts]

    def _pass(self, memory: Memory, tokens: list[int], options: dict[str, bool]) -> Any:
        memory.tokens = memory.tokens + tokens
        ids = torch.tensor([memory.tokens], device=self.model.device)
        inputs = {"use_cache": True, "attention_mask": torch.ones_like(ids), **memory.state}
        if self._takes_positions:
            inputs["position_ids"] = torch.arange(ids.shape[1], device=ids.device)[None]
        # Some models keep nothing, and some drop what they keep when a sequence outgrows it: `generate` knows which.
        unread = len(tokens) if memory.state else None
        prepare = cast(Callable[..., dict[str, Any]], self.model.prepare_inputs_for_generation)
        inputs = prepare(ids, next_sequence_length=unread, is_first_iteration=not memory.state, **inputs)
        output = self.model(**inputs, **options)
        memory.state = {name: kept for name in ALL_CACHE_NAMES if (kept := output.get(name)) is not None}
        return output


def behind(output: Any, depth: float | None) -> torch.Tensor:
    """Of a model's output, the hidden states `[rows, tokens, hidden]` behind a share of its layers: the first that it
    has are its embeddings, the last come after the final norm, and they are what None asks for."""
    last: torch.Tensor | None = output.get("last_hidden_state")
    if depth is None and last is not None:
        return last
    states: Sequence[torch.Tensor] = output.hidden_states
    return states[int((1.0 if depth is None else depth) * (len(states) - 1))]
