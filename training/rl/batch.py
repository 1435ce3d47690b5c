"""Define what the hooks read: the rollouts of one step, then the same rows with the policy's log-probabilities.

`B` rows, `T` response tokens, padded. Entropies and log-probabilities are in nats, of logits divided by the sampling
temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch

from waver.training.rl.unknown import is_known


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Return at least float32: half precision is for models, not for losses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Rows as they were drawn and scored, before any forward pass of the training model: what `rollout_filter` sees."""

    mask: torch.Tensor
    """`[B, T]` 0 or 1, floating: the tokens that the policy wrote, end of sequence included."""
    reward: torch.Tensor
    """`[B]` what the advantage is made of."""
    group: torch.Tensor
    """`[B]` integer, the same for the rows of one prompt in one draw."""
    correct: torch.Tensor
    """`[B]` bool: right or wrong, whatever the reward adds for shape or for a part. A trainer that is not told what
    counts as right gives `Unknown`."""
    draw: torch.Tensor
    """`[B]` integer: which `Draw` of the plan the row came from; 0 is the main one, all others are auxiliary."""
    truncated: torch.Tensor
    """`[B]` bool: cut at the length limit."""
    tokens: torch.Tensor
    """`[B, T]` token ids."""
    step: int = 1
    """The training step, from 1 on."""
    total_steps: int = 1

    @property
    def progress(self) -> float:
        """`step / total_steps`, in (0, 1]."""
        return self.step / self.total_steps

    @property
    def lengths(self) -> torch.Tensor:
        """`[B]` valid tokens of each row."""
        return self.mask.sum(1)

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, rows: torch.Tensor) -> Self:
        """Return some rows, by a `[B]` bool mask or by indices; what is not kept by row (`totals`, `step`) stays."""

        def cut(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: cut(inner) for name, inner in value.items()}
            return value[rows] if isinstance(value, torch.Tensor) else value

        return replace(self, **{f.name: cut(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Batch(Rollouts):
    """Rows with what the policy says of them: what every hook after `rollout_filter` sees.

    A hook changes nothing in place: it returns a tensor, or `dataclasses.replace(batch, ...)`. Between two updates only
    `logprob` and `live` change, and they alone carry a gradient.
    """

    old_logprob: torch.Tensor
    """`[B, T]` of the sampled tokens under the policy before this step's updates, computed by the training model."""
    entropy: torch.Tensor
    """`[B, T]` of the distribution that the token was drawn from, under the same policy; no gradient."""
    logprob: torch.Tensor
    """`[B, T]` under the policy as it is now, with gradient; equal to `old_logprob` until the first update."""
    advantage: torch.Tensor
    """`[B, T]`; 0 until the base advantage is known."""
    weight: torch.Tensor
    """`[B, T]`, at least 0: the product of all `token_weight` hooks; 1 until then."""
    step_id: torch.Tensor
    """`[B, T]` integer: the turn that a token belongs to, -1 outside; a single turn is all 0."""
    ref_logprob: torch.Tensor | None = None
    """`[B, T]` under the frozen reference; there when the recipe `needs_reference`."""
    measures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Named `[B, T]` or `[B]` tensors without gradient: measures of the old policy, and what controllers leave here."""
    live: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Named `[B, T]` measures of the policy as it is now, with gradient, such as `entropy`."""
    correction: torch.Tensor | None = None
    """`[B, T]` importance weights of rows that another engine drew: the policy loss is multiplied by them, and nothing
    else sees them, neither a denominator nor what chooses tokens by their advantage."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """Sums over the optimizer batch that these rows are a part of (see `counted`); empty if they are all of it."""
    begun: bool = False
    """True once `Recipe.begin_update` has seen the optimizer batch that these rows are a part of."""

    @classmethod
    def of(
        cls,
        rollouts: Rollouts,
        *,
        old_logprob: torch.Tensor,
        entropy: torch.Tensor,
        ref_logprob: torch.Tensor | None = None,
        measures: Mapping[str, torch.Tensor] | None = None,
        step_id: torch.Tensor | None = None,
    ) -> Batch:
        """Return rollouts and the pass without gradient over them. Without a `step_id` each row is a single turn."""
        old_logprob = at_least_float32(old_logprob.detach())
        mask = rollouts.mask.to(old_logprob.dtype)
        kept = {f.name: getattr(rollouts, f.name) for f in fields(Rollouts)}
        batch = cls(
            **kept | {"mask": mask},
            old_logprob=old_logprob,
            entropy=at_least_float32(entropy.detach()),
            logprob=old_logprob,
            advantage=torch.zeros_like(old_logprob),
            weight=torch.ones_like(old_logprob),
            step_id=(mask > 0).long() - 1 if step_id is None else step_id,
            ref_logprob=None if ref_logprob is None else at_least_float32(ref_logprob.detach()),
            measures={name: measure.detach() for name, measure in (measures or {}).items()},
        )
        batch = without_padding(batch)
        return replace(batch, logprob=batch.old_logprob)

    @property
    def reference(self) -> torch.Tensor:
        """`ref_logprob`, for those who cannot do without.

        Raises:
            ValueError: the trainer gave none.
        """
        if self.ref_logprob is None:
            raise ValueError("this recipe needs `ref_logprob`, the log-probabilities of a frozen reference model")
        return self.ref_logprob

    def counted(self) -> Batch:
        """Return these rows as one optimizer batch: with `totals`, so that parts of it are divided by the sums of the
        whole.

        `tokens` and `rows` (with at least one valid token) count everything valid; `selected` is the sum of
        `weight` over valid tokens and `selected_rows` the number of rows where it is positive. Each `[B, T]` measure is
        summed over valid tokens under its own name. A trainer over several machines adds them up before `split`.
        """
        selected = (self.mask * self.weight).sum(1)
        sums = {
            "tokens": self.mask.sum(),
            "rows": (self.lengths > 0).sum(),
            "selected": selected.sum(),
            "selected_rows": (selected > 0).sum(),
        }
        for name, measure in self.measures.items():
            if measure.shape == self.mask.shape:
                sums[name] = measure.masked_fill(self.mask == 0, 0).sum()
        return replace(self, totals={name: float(total) for name, total in sums.items()})

    def split(self, parts: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Cut into so many parts of nearly equal numbers of rows; shuffled if there is a generator."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for rows in order.tensor_split(parts):
            if len(rows):
                yield self.select(rows)


def without_padding(batch: Batch) -> Batch:
    """Return the batch with 0 outside of the mask wherever the policy says something of a token.

    A model may leave NaN at padding, and 0 times NaN is NaN in every sum over a mask.
    """
    outside = batch.mask == 0

    def clean(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: clean(value) for name, value in x.items()}
        return x if not is_known(x) or x is None or x.shape != outside.shape else x.masked_fill(outside, 0)

    names = ("old_logprob", "entropy", "logprob", "advantage", "weight", "ref_logprob", "measures", "live")
    return replace(batch, **{name: clean(getattr(batch, name)) for name in names})
