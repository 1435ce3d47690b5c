"""Define a training method: named hooks, and what they need from the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from waver.training.rl.batch import Batch, Rollouts
from waver.training.rl.settings import Settings
from waver.training.rl.unknown import Readable


@dataclass(frozen=True)
class Measure:
    """A named per-token quantity that a forward pass yields on the way, where the logits or the attention are.

    Args:
        name: under which `Batch.measures` and `Batch.live` hold it. `entropy` is there without being asked for in
            `Batch.entropy`, and in `Batch.live` when a method lists it with `live=True`.
        of: for `logits`, `[..., vocab]` (divided by the temperature, float32) -> `[...]`. For `attention`, the weights
            `[B, heads, queries, keys]` of one layer and which keys each query may see, bool `[B, 1, queries, keys]`
            -> `[B, queries]`; a response token's value is that of the position that predicted it.
        old: wanted without gradient in the pass that yields `old_logprob`.
        live: wanted with gradient in every update.
        layer: of the attention; None is the middle one.
    """

    name: str
    of: Callable[..., torch.Tensor]
    old: bool = True
    live: bool = False
    source: Literal["logits", "attention"] = "logits"
    layer: int | None = None


@dataclass(frozen=True)
class Draw:
    """A way to draw rows: the plan of a step is a tuple of these, the first of them the main one.

    Args:
        share: of the step's prompts, drawn at random; 1 is all of them.
        temperature: relative to the trainer's own.
        logits: raw `[rows, vocab]` logits -> logits, before temperature and truncation. Make it a frozen dataclass with
            `__call__`, so that it can be sent to another process or be written down for an engine.
    """

    share: float = 1.0
    temperature: float = 1.0
    logits: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """A paper as hooks on the base. All are optional; the order below is the order in which they run.

    The first eight run once a step, over all its rows (of all processes), without gradient; `update_controller` runs
    once an update, over all of its rows, without gradient; the last three run in every forward pass of an update, over
    a micro-batch. `rollout_filter` sees `Rollouts`, the others a `Batch`.

    From `reward` on, the hooks see the rows that filters have left, dynamic sampling among them, and under
    `mask_truncated` rows that were cut have an empty mask from `advantage` on: an entropy that a controller takes of
    them is not that of all rows as drawn. A method says which it means.
    """

    name: str
    """That of its module."""
    paper: str
    """`arXiv 2510.10150`"""
    summary: str
    """Its effect, in one line."""

    rollout_sampler: Callable[[tuple[Draw, ...]], tuple[Draw, ...]] | None = None
    """1. The plan of draws -> the plan of draws."""
    rollout_filter: Callable[[Rollouts], torch.Tensor] | None = None
    """2. The rows to keep, `[B]` bool."""
    reward: Callable[[Batch], torch.Tensor] | None = None
    """3a. `[B]` rewards from `batch.reward`, before they are normalised."""
    advantage: Callable[[Batch], torch.Tensor] | None = None
    """3b. `[B]` or `[B, T]` in place of the base estimator; one method at most."""
    step_controller: Callable[[Batch], Batch] | None = None
    """4. Reads the step, moves `state`; may drop rows (fold them into `mask`) and leave tensors in `measures`."""
    advantage_transform: Callable[[Batch], torch.Tensor] | None = None
    """5. `[B, T]` from `batch.advantage`."""
    token_weight: Callable[[Batch], torch.Tensor] | None = None
    """6. `[B, T]` at least 0, multiplied into `batch.weight`; may be divided by (`denominator: selected`)."""
    report: Callable[[Batch], Mapping[str, float]] | None = None
    """Metrics of the step to log."""
    update_controller: Callable[[Batch, Settings], Mapping[str, torch.Tensor]] | None = None
    """Measures that the last hooks need of the whole optimizer batch under the policy as it is now, such as a quantile
    or the tokens that it chooses: `[B]` or `[B, T]` tensors to put into `measures`. Costs a forward pass of its own
    where an update has several micro-batches or processes, and the policy has moved."""
    live_weight: Callable[[Batch], torch.Tensor] | None = None
    """6, for weights that follow the policy through a step's updates; never part of a denominator."""
    policy_loss: Callable[[Batch, Settings], torch.Tensor] | None = None
    """7. The `[B, T]` loss in place of the base; one method at most."""
    extra_loss: Callable[[Batch, Settings], torch.Tensor] | None = None
    """9. A scalar to add, its coefficient included. Divide sums by `batch.totals`, so that micro-batches add up."""

    state: dict[str, Any] = field(default_factory=dict)
    """State to keep in checkpoints: numbers, strings, lists, tensors. The hooks read and write this very dict."""
    measures: tuple[Measure, ...] = ()
    reads: frozenset[Readable] = frozenset()
    """Fields of the rows that its hooks read and not every trainer provides: one that does not refuses the method."""
    needs_reference: bool = False
    """True if it reads `ref_logprob`."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """`Settings` that its paper trains with; whoever makes the recipe can say otherwise."""
    excludes: Mapping[str, str] = field(default_factory=dict)
    """Names of methods that it cannot stand beside, each with the reason as half a sentence: "both ..."."""
