"""Run rows with pictures beside rows of text alone.

A row with pictures is read and continued by the model's own forward pass, with its own kind of cache, one row a pass:
models differ in their positions, masks and caches of pictures, and all that is right there. Other rows run as for any
model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from waver.engines.native import CacheState, NativeRunner
from waver.engines.pictures import PrunedPrompt, Pruning
from waver.engines.runner import Runner
from waver.engines.visual_pruning import VisualPruner


@dataclass(frozen=True)
class View:
    """Pictures of a prompt: what the model reads beside its ids (`waver.engines.vision.Vision.inputs`; empty once they
    have been read), and which image tokens to drop. `key` tells views apart."""

    key: tuple[Any, ...]
    inputs: dict[str, torch.Tensor]
    pruning: Pruning | None = None


@dataclass(slots=True)
class SeenState(CacheState):
    """The cache of a row with pictures, and what its later passes need. `text_from`: tokens up to the end of the last
    picture."""

    view: View | None = None
    text_from: int = 0
    rope_deltas: Any = None
    pruner: VisualPruner | None = None
    pruned: PrunedPrompt | None = None


class PictureRunner:
    """Implements `waver.engines.runner.Runner` for a vision-language model.

    Args:
        text: runs the rows without pictures. image_token: the id of an image's tokens.
    """

    def __init__(self, text: Runner, model: PreTrainedModel, image_token: int) -> None:
        self._text, self._seeing = text, SeeingRunner(model, image_token)

    def show(self, slot: int, view: View | None) -> None:
        """Say what the prompt in a slot shows, before its first pass; None: nothing."""
        if view is None:
            self._seeing.views.pop(slot, None)
        else:
            self._seeing.views[slot] = view

    def pruned(self, slot: int) -> PrunedPrompt | None:
        """Return what was dropped from the prompt in a slot, if anything was."""
        return self._seeing.pruned(slot)

    def extend(self, slots: list[int], starts: list[int], tokens: list[list[int]]) -> torch.Tensor:
        return self.extend_and_read(slots, starts, tokens, {})[0]

    def extend_and_read(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], places: Mapping[int, int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        logits: dict[int, torch.Tensor] = {}
        states: dict[int, torch.Tensor] = {}
        for runner, rows in self._split(slots):
            inner = {n: places[i] for n, i in enumerate(rows) if i in places}
            given = [slots[i] for i in rows], [starts[i] for i in rows], [tokens[i] for i in rows]
            found, read = runner.extend_and_read(*given, inner) if inner else (runner.extend(*given), {})
            logits |= dict(zip(rows, found, strict=True))
            states |= {rows[n]: state for n, state in read.items()}
        return torch.stack([logits[i] for i in range(len(slots))]), states

    def read(self, slot: int, start: int, tokens: list[int]) -> torch.Tensor:
        return self._runner(slot).read(slot, start, tokens)

    def states(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], depths: Sequence[float | None]
    ) -> torch.Tensor:
        out: dict[int, torch.Tensor] = {}
        for runner, rows in self._split(slots):
            given = [slots[i] for i in rows], [starts[i] for i in rows], [tokens[i] for i in rows]
            out |= dict(zip(rows, runner.states(*given, [depths[i] for i in rows]), strict=True))
        return torch.stack([out[i] for i in range(len(slots))])

    def copy(self, source: int, target: int, length: int) -> int:
        if source in self._seeing.views:
            return self._seeing.copy(source, target, length) if source == target else 0
        return self._text.copy(source, target, length)

    def _runner(self, slot: int) -> Runner:
        return self._seeing if slot in self._seeing.views else self._text

    def _split(self, slots: list[int]) -> list[tuple[Runner, list[int]]]:
        """Group the rows of a pass by who runs them."""
        seen = [i for i, slot in enumerate(slots) if slot in self._seeing.views]
        rest = [i for i in range(len(slots)) if i not in seen]
        groups: list[tuple[Runner, list[int]]] = [(self._text, rest), (self._seeing, seen)]
        return [(runner, rows) for runner, rows in groups if rows]


class SeeingRunner(NativeRunner):
    """Runs rows with pictures: their first pass takes the whole prompt, with what `views` has for the slot. `read` has
    the logits of the last token only."""

    def __init__(self, model: PreTrainedModel, image_token: int) -> None:
        super().__init__(model)
        self.views: dict[int, View] = {}
        self._image_token = image_token
        self._picks_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def pruned(self, slot: int) -> PrunedPrompt | None:
        state = self._states.get(slot)
        return state.pruned if isinstance(state, SeenState) else None

    def copy(self, source: int, target: int, length: int) -> int:
        """Cut a slot's last tokens off, where they are text that stands behind all pictures; see `Runner.copy`."""
        cached = self._states.get(source)
        if source != target or not isinstance(cached, SeenState) or length < cached.text_from:
            return 0
        cache, extra = cached.state.get("past_key_values"), len(cached.tokens) - length
        if extra:
            if not isinstance(cache, DynamicCache) or any(type(each) is not DynamicLayer for each in cache.layers):
                return 0
            cache.crop(-extra)  # of each layer: those behind a pruned one hold fewer
            cached.tokens = cached.tokens[:length]
        return length

    def _begin(self, slot: int) -> CacheState:
        return SeenState(view=self.views[slot])

    def _pass(self, cached: CacheState, tokens: list[int], options: dict[str, Any]) -> Any:
        assert isinstance(cached, SeenState)
        assert cached.view is not None
        first, base, device = not cached.state, self.model.base_model, self.model.device
        cached.tokens = cached.tokens + tokens
        ids = torch.tensor([cached.tokens], device=device)
        shown = {name: value.to(device) for name, value in cached.view.inputs.items()} if first else {}
        for name, value in shown.items():
            if value.is_floating_point():
                shown[name] = value.to(self.model.dtype)
        turns = hasattr(base, "rope_deltas")  # positions behind a picture, which the model remembers of one row only
        if turns:
            base.rope_deltas = cached.rope_deltas
        inputs = self._prepare(ids, None if first else len(tokens), first, {**cached.state, **shown})
        if self._picks_logits:  # those of a whole prompt would be as many as its tokens
            inputs["logits_to_keep"] = 1
        if first and cached.view.pruning is not None:
            cached.pruner = VisualPruner(self.model, self._image_token, cached.view.pruning)
            watching: Any = cached.pruner.watching(ids)
        else:
            watching = cached.pruner.going_on() if cached.pruner is not None else nullcontext()
        with watching:
            output = self.model(**inputs, **options)
        if first:
            cached.view.inputs.clear()
            cached.text_from = int((ids[0] == self._image_token).nonzero()[-1]) + 1
        if first and cached.pruner is not None:
            cached.pruned = cached.pruner.report
        if turns:
            cached.rope_deltas = base.rope_deltas
        self._keep(cached, output)
        return output
