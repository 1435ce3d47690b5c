"""The interface of forward passes over slots, and the choice between its two implementations for a model.

`SlotRunner` decodes any mixture of sequences in one pass, but needs a model that honours the attention mask it is
given. Whether it does is not looked up by name: it is tested once, when the model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from transformers import PreTrainedModel

from waver.engines.native import NativeRunner
from waver.engines.slots import SlotRunner

log = logging.getLogger(__name__)

TRIED = ((19, 1), (11, 3))
"""Tokens of the two ragged rows that the test reads, in two passes."""
WINDOW = 8
"""The sliding window during the test: short enough to take effect in it."""


class Runner(Protocol):
    """Runs forward passes over slots, each of which holds the tokens of one sequence. Use it from one thread."""

    def extend(self, slots: list[int], starts: list[int], tokens: list[list[int]]) -> torch.Tensor:
        """Append tokens to slots: slot `slots[i]` holds `starts[i]` tokens and takes `tokens[i]`; `[rows, vocab]`
        logits after each row's last token."""
        ...

    def extend_and_read(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], places: Mapping[int, int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Do as `extend`, and for some rows return the state `[hidden]` after the final norm at the place `places[i]`
        of `tokens[i]`."""
        ...

    def read(self, slot: int, start: int, tokens: list[int]) -> torch.Tensor:
        """Append tokens to one slot; `[len(tokens), vocab]` logits after each of them."""
        ...

    def states(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], depths: Sequence[float | None]
    ) -> torch.Tensor:
        """Append tokens as `extend` does; `[rows, hidden]` states at each row's last token, behind a share of the
        layers or, for None, after the final norm."""
        ...

    def copy(self, source: int, target: int, length: int) -> int:
        """Make `target` hold the first `length` tokens of `source`; how many it holds now: `length`, or 0 where the
        model's memory cannot be cut there."""
        ...


@torch.inference_mode()
def make_runner(model: PreTrainedModel, context_length: int) -> Runner:
    """Choose slots where the model's logits come out the same with them, else the model's own cache, one row a pass."""
    obstacle = _obstacle(model, context_length)
    if obstacle is None:
        return SlotRunner(model)
    log.warning("%s decodes its sequences one after another: %s", type(model).__name__, obstacle)
    return NativeRunner(model)


def _obstacle(model: PreTrainedModel, context_length: int) -> str | None:
    """Explain why the model cannot run with slots; None where it can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"} or getattr(config, "attention_chunk_size", None):
        return f"it has layers of the kinds {', '.join(sorted(kinds)) or 'chunked_attention'}"
    trained = _rescaled_beyond(model)
    if trained is not None and trained < context_length:
        return f"its rotary positions change for the whole batch when one sequence grows beyond {trained} tokens"
    try:
        with _short_window(model):
            error = _trial_error(model)
    except Exception as failure:  # whatever it is, the model cannot run with slots
        return f"it cannot be driven by slots ({type(failure).__name__})"
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return None if error <= tolerance else f"its logits are off by {error:.2g} of their spread with slots"


def _rescaled_beyond(model: PreTrainedModel) -> int | None:
    """Find the length beyond which rotary frequencies depend on the longest row of a batch."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    for scaling in (rope, *rope.values()):
        if isinstance(scaling, dict) and scaling.get("rope_type") in ("dynamic", "longrope"):
            own = getattr(config, "original_max_position_embeddings", None)
            return int(scaling.get("original_max_position_embeddings") or own or config.max_position_embeddings)
    return None


@contextmanager
def _short_window(model: PreTrainedModel) -> Iterator[None]:
    """Shorten the sliding window so that it takes effect in the test."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is None:
        yield
        return
    config.sliding_window = min(window, WINDOW)
    try:
        yield
    finally:
        config.sliding_window = window


def _trial_error(model: PreTrainedModel) -> float:
    """Compute the root mean square difference between the logits of slots and of plain passes, in standard
    deviations."""
    runner = SlotRunner(model)
    vocabulary = min(64, int(model.config.get_text_config().vocab_size))
    rows = [[(7 * i + 3 * j) % vocabulary for j in range(sum(cut))] for i, cut in enumerate(TRIED)]
    firsts = [first for first, _ in TRIED]
    runner.extend([0, 2], [0, 0], [row[:n] for row, n in zip(rows, firsts, strict=True)])
    slots = runner.extend([0, 2], firsts, [row[n:] for row, n in zip(rows, firsts, strict=True)])
    inputs = [torch.tensor([row], device=model.device) for row in rows]
    plain = torch.stack([model(input_ids=ids, use_cache=False).logits[0, -1] for ids in inputs])
    return float((slots.float() - plain.float()).square().mean().sqrt() / plain.float().std())
