"""Clip-Cov: a few of the tokens that drain entropy most are left out of the gradient, at random.

The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, eq. 10 to 12, and
verl's `clip_cov`. With N valid tokens in the rows of an update and ln p of the current policy, no gradient:

    cov_i = (ln p_i - mean ln p) (A_i - mean A)
    candidates: valid, low < cov_i < high, not clipped by PPO already
    picked:     max(1, floor(share N)) of the candidates, uniformly without replacement; all if there are fewer
    loss_i = 0 if picked, else max(-A_i r_i, -A_i clip(r_i, 1 - clip_low, 1 + clip_high))

Picked tokens still count in the denominator. As in the code and against the paper's listing, tokens that PPO clips are
no candidates and at least one token is picked. The ratio may move in [0, 2], and there is no dual clip.

Means and picks are over the whole optimizer batch, however many micro-batches and processes share it; verl's take each
micro-batch by itself. Likely-and-good and unlikely-and-bad tokens both score high: the report says what share of the
candidates are the latter.

When: entropy collapses early and there is much training left. It holds entropy, at the price of more steps to the same
accuracy; what to hold it at is for validation to say. The bounds mean advantages of unit variance. The paper also drops
groups of equal reward (base `dapo`, or `dynamic_sampling`). Cost: none with one micro-batch in one process; else one
more forward pass over the rows of every update but the first of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field, model_validator

from waver.training.rl.batch import Batch
from waver.training.rl.entropy_change import covariance
from waver.training.rl.loss import clipped, clipped_loss, importance_ratio
from waver.training.rl.method import Method
from waver.training.rl.settings import Settings
from waver.training.strict import Strict

LEFT_OUT = "clip_cov_left_out"


class Parameters(Strict):
    share: float = Field(2e-4, gt=0, le=1)
    """Of the tokens, to leave out; r in the paper. More keeps more entropy."""
    low: float = 1.0
    high: float = 5.0
    """Between which covariances a token may be left out."""
    seed: int = Field(0, ge=0)
    """Of the picks."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError("no covariance lies between the bounds: low must be below high")
        return self


def candidates(
    cov: torch.Tensor, mask: torch.Tensor, outside: torch.Tensor, low: float = 1.0, high: float = 5.0
) -> torch.Tensor:
    """Return the tokens that may be picked, `[B, T]` bool; `outside`: clipped by PPO."""
    return (mask > 0) & (cov > low) & (cov < high) & ~outside


def pick(among: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return so many of the marked tokens, all if there are fewer, `[B, T]` bool."""
    places = among.flatten().nonzero().squeeze(1)
    chosen = torch.randperm(len(places), generator=generator)[:count].to(places.device)
    return torch.zeros_like(among).flatten().index_fill(0, places[chosen], True).view_as(among)


def method(p: Parameters) -> Method:
    generator = torch.Generator().manual_seed(p.seed)
    state: dict[str, Any] = {"generator": generator.get_state()}

    def choose(batch: Batch, settings: Settings) -> Mapping[str, torch.Tensor]:
        ratio = importance_ratio(batch.logprob, batch.old_logprob, batch.mask, settings.ratio)
        bounds = settings.clip_low, settings.clip_high
        cov = covariance(batch.logprob, batch.advantage, batch.mask)
        may = candidates(cov, batch.mask, clipped(ratio, batch.advantage, *bounds), p.low, p.high)
        generator.set_state(state["generator"])
        left_out = pick(may, max(1, int(p.share * int((batch.mask > 0).sum()))), generator)
        state["generator"] = generator.get_state()
        return {LEFT_OUT: left_out.to(batch.mask.dtype)}

    def loss(batch: Batch, settings: Settings) -> torch.Tensor:
        ratio = importance_ratio(batch.logprob, batch.old_logprob, batch.mask, settings.ratio)
        matrix = clipped_loss(ratio, batch.advantage, settings.clip_low, settings.clip_high, settings.dual_clip)
        return matrix.masked_fill(batch.measures[LEFT_OUT] > 0, 0.0)

    def report(batch: Batch) -> dict[str, float]:
        cov = covariance(batch.old_logprob, batch.advantage, batch.mask)
        may = candidates(cov, batch.mask, torch.zeros_like(cov, dtype=torch.bool), p.low, p.high)
        tokens = batch.mask.sum().clamp(min=1)
        mean = (batch.advantage * batch.mask).sum() / tokens
        return {
            "covariance": float(cov.sum() / tokens),
            "candidates": float(may.sum() / tokens),
            "bad_candidates": float((may & (batch.advantage < mean)).sum() / may.sum().clamp(min=1)),
        }

    return Method(
        name="clip_cov",
        paper="arXiv 2505.22617",
        summary="leaves out a random few of the tokens with the highest covariance of log-probability and advantage",
        update_controller=choose,
        policy_loss=loss,
        report=report,
        state=state,
        defaults={"clip_low": 1.0, "clip_high": 1.0, "dual_clip": None},
    )
