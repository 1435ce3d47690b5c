"""KV caches by slot, and forward passes over any mixture of slots.

transformers' own caches hold one length for a whole batch. Here each slot is a row of its own length, so sequences of
different lengths decode together, and a sequence that another engine goes on with keeps its row: when it comes back,
one pass over the missing tokens brings it up to date.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from waver.engines.native import layer_output

_GROWTH = 256
"""Slots grow in steps of this many tokens."""


class SlotCache(Cache):
    """A cache whose layers are `[slots, tokens, heads, head_dim]`, grown as slots and tokens come into use.

    `aim` sets which cells the next pass writes and reads; attention layers call `update`.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._layers: list[list[torch.Tensor]] = []
        self._rows = self._positions = torch.empty(0, dtype=torch.long)
        self._reach = self._slots = 0
        self._view: slice | torch.Tensor = slice(0)

    def aim(self, rows: list[int], positions: torch.Tensor, reach: int) -> None:
        """Set what the next pass uses: slots `rows`, writing at `positions` `[rows, new]`, reading `reach` cells."""
        self._positions, self._reach = positions, reach
        self._slots = max(self._slots, max(rows) + 1)
        self._rows = torch.tensor(rows, device=positions.device)
        together = rows == list(range(rows[0], rows[0] + len(rows)))
        self._view = slice(rows[0], rows[0] + len(rows)) if together else self._rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        while len(self._layers) <= layer_idx:  # the first pass tells the shapes
            self._layers.append([t.new_zeros(0, 0, t.shape[1], t.shape[3]) for t in (key_states, value_states)])
        layer = self._layers[layer_idx]
        if layer[0].shape[0] < self._slots or layer[0].shape[1] < self._reach:
            layer[:] = [self._grow(store) for store in layer]
        for store, new in zip(layer, (key_states, value_states), strict=True):
            store[self._rows[:, None], self._positions] = new.transpose(1, 2)
        keys, values = (store[self._view, : self._reach].transpose(1, 2) for store in layer)
        return keys, values

    def _grow(self, store: torch.Tensor) -> torch.Tensor:
        slots = max(store.shape[0], self._slots + self._slots // 4)
        length = max(store.shape[1], -(-self._reach // _GROWTH) * _GROWTH)
        grown = store.new_zeros(slots, length, *store.shape[2:])
        grown[: store.shape[0], : store.shape[1]] = store
        return grown

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cells of a slot to another."""
        self._slots = max(self._slots, target + 1)
        for layer in self._layers:
            if layer[0].shape[0] < self._slots:
                layer[:] = [self._grow(store) for store in layer]
            for store in layer:
                store[target, :length] = store[source, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._reach, 0


class SlotRunner:
    """Implements `waver.engines.runner.Runner`: any mixture of slots in one pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache = SlotCache()
        config = model.config.get_text_config()
        self._kinds = set(getattr(config, "layer_types", None) or ())
        self._window: int | None = getattr(config, "sliding_window", None)
        self._picks_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def extend(self, slots: list[int], starts: list[int], tokens: list[list[int]], **options: bool) -> torch.Tensor:
        inputs = self._inputs(slots, starts, tokens) | options
        device = self.model.device
        ends = [len(row) - 1 for row in tokens]
        rows = torch.arange(len(tokens), device=device)
        if not self._picks_logits:
            return self.model(**inputs).logits[rows, torch.tensor(ends, device=device)]  # type: ignore[no-any-return]
        kept = sorted(set(ends))
        logits = self.model(**inputs, logits_to_keep=torch.tensor(kept, device=device)).logits
        return logits[rows, torch.tensor([kept.index(end) for end in ends], device=device)]  # type: ignore[no-any-return]

    def extend_and_read(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], places: Mapping[int, int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        body, seen = self.model.base_model, []
        options = {"output_hidden_states": True} if body is self.model else {}
        hook = body.register_forward_hook(lambda *passed: seen.append(passed[-1]))
        try:
            logits = self.extend(slots, starts, tokens, **options)
        finally:
            hook.remove()
        states = layer_output(seen[-1], None)
        return logits, {row: states[row, place] for row, place in places.items()}

    def read(self, slot: int, start: int, tokens: list[int]) -> torch.Tensor:
        return self.model(**self._inputs([slot], [start], [tokens])).logits[0]  # type: ignore[no-any-return]

    def states(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], depths: Sequence[float | None]
    ) -> torch.Tensor:
        body = self.model.base_model
        inner = body is self.model or any(depth is not None for depth in depths)
        out = body(**self._inputs(slots, starts, tokens), output_hidden_states=inner)
        layers = [layer_output(out, depth) for depth in depths]
        ends = [len(row) - 1 for row in tokens]
        return torch.stack([layer[row, end] for row, (layer, end) in enumerate(zip(layers, ends, strict=True))])

    def copy(self, source: int, target: int, length: int) -> int:
        if source != target:
            self.cache.copy(source, target, length)
        return length

    def _inputs(self, slots: list[int], starts: list[int], tokens: list[list[int]]) -> dict[str, Any]:
        device = self.model.device
        width = max(len(row) for row in tokens)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=device)
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        lengths = [start + len(row) for start, row in zip(starts, tokens, strict=True)]
        reach = max(lengths)
        cells = positions
        if any(len(row) < width for row in tokens):
            # Padding is written behind its row's tokens, into cells that are overwritten before they are read; one more
            # cell makes room behind the longest row too. It has its row's last position, which every model accepts.
            reach += 1
            cells = positions.clamp(max=reach - 1)
            positions = positions.minimum(torch.tensor(lengths, device=device)[:, None] - 1)
        self.cache.aim(slots, cells, reach)
        return {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": self._mask(positions, reach),
            "past_key_values": self.cache,
            "use_cache": True,
        }

    def _mask(self, positions: torch.Tensor, reach: int) -> Any:
        """Make the attention mask of the new tokens: `[rows, 1, new, reach]`, added to the attention scores."""
        distance = positions[:, None, :, None] - torch.arange(reach, device=positions.device)
        seen = distance >= 0

        def additive(visible: torch.Tensor) -> torch.Tensor:
            blank = torch.zeros((), dtype=self.model.dtype, device=positions.device)
            return torch.where(visible, blank, torch.finfo(self.model.dtype).min)

        if self._window is None or self._kinds == {"full_attention"}:
            return additive(seen)
        near = additive(seen & (distance < self._window))
        return {"full_attention": additive(seen), "sliding_attention": near} if len(self._kinds) > 1 else near
