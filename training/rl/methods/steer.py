"""STEER: a token's loss weighs the less, the more its update would move the entropy, whichever way.

Rethinking Entropy Interventions in RLVR, arXiv 2510.10150, and its code. With x the probability under the current
policy, o and H probability and entropy under the old one, all without gradient:

    Omega = A / o x (1 - x) (ln x + H)          0 where not finite
    M     = the largest |Omega|, at least floor
    w     = exp(ln(smallest) |Omega| / M)       in [smallest, 1]
    loss  = w (clipped loss, 0.2 / 0.28, dual clip 10), token mean over all valid tokens

`form="linear"` is the code's variant: w falls linearly from `largest` at the smallest |Omega| to `smallest` at the
largest; their mean if all are equal.

`estimator`: the released Omega stands for a step on the sampled token's logit alone, and for one that lacks a factor x
(`with_x` has it). `exact` is A x / o (S - E[S]), the first-order change under the step that is really taken
(training/rl/entropy_change.py); on random states it correlates with the true change at 1.00 where `with_x` does at 0.74
and the released form at 0.65.

M is that of the whole optimizer batch, however many micro-batches and processes share it; the code takes each
micro-batch by itself. `scope="step"` takes it once a step from the old policy, over all rows that are left after
filtering. One improbable token can set M alone and leave all others near 1: `quantile` below 1 takes a quantile for M
instead. A clipped token has no gradient but keeps its Omega and may set M, as in the code. The v4 paper has no floor.

When: for a slower drift of entropy at nearly the same gradients; in small runs it takes a `smallest` of 0.5 or less to
see it, and under Adam, which rescales what is damped, less of it is left. Cost: none with one micro-batch in one
process; else, but for `scope="step"`, one more forward pass over the rows of every update but the first of a step.
`exact` one pass over the logits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from waver.training.rl.batch import Batch
from waver.training.rl.entropy_change import discriminator, expected_discriminator
from waver.training.rl.method import Measure, Method
from waver.training.rl.quantiles import quantile as quantile_of
from waver.training.strict import Strict

TINY = 1e-8
LOW, HIGH = "steer_low", "steer_high"


class Parameters(Strict):
    smallest: float = Field(0.8, gt=0, le=1)
    """The least weight; lambda_min in the paper."""
    form: Literal["exponential", "linear"] = "exponential"
    largest: float = Field(1.2, gt=0)
    """The largest weight of the linear form; that of the exponential one is 1."""
    floor: float = Field(0.02, ge=0)
    """Below which M does not fall: where nothing moves the entropy, nothing is damped. In the code only."""
    estimator: Literal["released", "with_x", "exact"] = "released"
    scope: Literal["update", "step"] = "update"
    """Over what M is taken."""
    quantile: float = Field(1.0, gt=0, le=1)
    """Of |Omega|, for M; 1 is the maximum. The linear form always takes the maximum."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.form == "linear" and self.largest < self.smallest:
            raise ValueError("largest must not be below smallest")
        if self.form == "linear" and (self.scope == "step" or self.quantile < 1):
            raise ValueError("scope and quantile belong to the exponential form")
        return self


def entropy_change(
    logprob: torch.Tensor,
    old_logprob: torch.Tensor,
    entropy: torch.Tensor,
    advantage: torch.Tensor,
    mask: torch.Tensor,
    estimator: Literal["released", "with_x", "exact"] = "released",
    nec: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return omega, `[B, T]` signed: the entropy of the token's distribution changes by about -(step size) Omega.

    Args:
        nec: E[S] under the old policy, for `exact`.
    """
    x = logprob.detach().exp().clamp(TINY, 1 - TINY)
    o = old_logprob.exp().clamp(TINY, 1)
    if estimator == "exact":
        assert nec is not None
        moved = x * (discriminator(x.log(), entropy) - nec)
    else:
        moved = x * (1 - x) * (x.log() + entropy) * (x if estimator == "with_x" else 1)
    omega = advantage / o * moved
    return omega.masked_fill(~omega.isfinite() | (mask == 0), 0.0)


def scale_of(omega: torch.Tensor, mask: torch.Tensor, floor: float = 0.02, quantile: float = 1.0) -> torch.Tensor:
    """Return M, a scalar: the largest |Omega| of the valid tokens, or a quantile of it, at least `floor`."""
    valid = omega.abs()[mask > 0]
    if not len(valid):
        return omega.new_tensor(floor)
    return (valid.max() if quantile == 1 else quantile_of(valid, quantile)).clamp(min=floor)


def range_of(omega: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and the largest |Omega| of the valid tokens, scalars."""
    size, valid = omega.abs(), mask > 0
    return size.masked_fill(~valid, torch.inf).min(), size.masked_fill(~valid, -torch.inf).max()


def exponential(omega: torch.Tensor, scale: torch.Tensor, smallest: float = 0.8) -> torch.Tensor:
    """Return exp(ln(smallest) |Omega| / M), in [smallest, 1]."""
    share = (omega.abs() / scale).nan_to_num(0.0)  # 0 / 0 where nothing moves and there is no floor
    return (math.log(smallest) * share).exp().clamp(smallest, 1.0)


def linear(
    omega: torch.Tensor, low: torch.Tensor, high: torch.Tensor, smallest: float = 0.8, largest: float = 1.2
) -> torch.Tensor:
    """Fall from `largest` at |Omega| = low down to `smallest` at high; their mean where the two are equal."""
    share = torch.where(high > low, (omega.abs() - low) / (high - low), 0.5)
    return (largest - share * (largest - smallest)).clamp(smallest, largest)


def method(p: Parameters) -> Method:
    def change(batch: Batch) -> torch.Tensor:
        return entropy_change(
            batch.logprob,
            batch.old_logprob,
            batch.entropy,
            batch.advantage,
            batch.mask,
            p.estimator,
            batch.measures.get("nec"),
        )

    def scales(batch: Batch) -> dict[str, torch.Tensor]:
        """Return what |Omega| is compared with, the same for every row."""
        omega = change(batch)
        low, high = range_of(omega, batch.mask)
        if p.form == "exponential":
            high = scale_of(omega, batch.mask, p.floor, p.quantile)
        return {LOW: low.expand(len(batch)), HIGH: high.expand(len(batch))}

    def weigh(batch: Batch) -> torch.Tensor:
        omega = change(batch)
        low, high = (batch.measures[name].unsqueeze(1) for name in (LOW, HIGH))
        if p.form == "linear":
            return linear(omega, low, high, p.smallest, p.largest) * batch.mask
        return exponential(omega, high, p.smallest) * batch.mask

    def report(batch: Batch) -> dict[str, float]:
        omega = change(batch)
        tokens = batch.mask.sum().clamp(min=1)
        return {"change": float(omega.sum() / tokens), "largest_change": float(omega.abs().max())}

    return Method(
        name="steer",
        paper="arXiv 2510.10150",
        summary="damps every token by how much its update would move the entropy",
        reads=frozenset({"entropy"}),
        step_controller=(lambda batch: replace(batch, measures={**batch.measures, **scales(batch)}))
        if p.scope == "step"
        else None,
        update_controller=(lambda batch, _: scales(batch)) if p.scope == "update" else None,
        live_weight=weigh,
        report=report,
        measures=(Measure("nec", expected_discriminator),) if p.estimator == "exact" else (),
        defaults={"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0},
    )
