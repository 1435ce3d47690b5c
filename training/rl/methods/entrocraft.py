"""Entrocraft: steer the entropy along a curve by choosing which rows are learned from.

With H the mean entropy of the step's tokens that filters have left (old policy, nats), A a row's advantage, and s of S
the step:

- the band: low(s) = low + (low_end - low) s / S, high(s) likewise; `cosine` puts (1 - cos(pi s / S)) / 2 for s / S
- the direction: m = 1[H > high(s)] - 1[H < low(s)]
- row i is kept if m A_i >= 0

Learning from likely rows with A > 0 lowers the entropy, from likely rows with A < 0 raises it. Inside the band, bounds
included, all rows are kept. Advantages are those of the whole group; kept rows alone count in every denominator.

Source: arXiv 2604.26326, its algorithm. Its released code does something else, `mode="released"`: out of band the
advantage is the bare reward, max(r, 0) above and min(r, 0) below, and all rows count; rewards must be -1 and 1 there.
Reconstructed: the mean over kept tokens (the paper divides by the kept rows of each prompt). A step that keeps no row
is left out by the trainer.

Use it for long runs that stop improving once the entropy is gone. Start the band at the model's own entropy (0.6 for
Qwen3-4B, 0.4 for 14B, 0.9 for Llama 3.1 8B) and let it fall: a constant high band makes long runs unstable, since late
corrections upward rest on few wrong rows. It needs several updates per step: strictly on-policy the band is lost.
Only likely rows obey the sign; watch `logprob`, the mean of the kept tokens. The paper adds `kl=1e-3`.
Costs nothing; fewer rows per step.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from waver.training.rl import Batch, Method, Strict

Schedule = Literal["linear", "cosine"]


class Parameters(Strict):
    low: float = Field(0.6, ge=0)
    """Lower bound at the start, nats."""
    high: float = Field(0.7, ge=0)
    low_end: float = Field(0.4, ge=0)
    """Lower bound at the end; 0.1 to 0.2 for long runs."""
    high_end: float = Field(0.5, ge=0)
    schedule: Schedule = "linear"
    mode: Literal["paper", "released"] = "paper"

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.low > self.high or self.low_end > self.high_end:
            raise ValueError("the lower bound of the band is above the upper one")
        return self


def bound(start: float, end: float, progress: float, schedule: Schedule = "linear") -> float:
    """Return a bound of the band at that share of the training."""
    return start + (end - start) * (progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2)


def direction(entropy: float, low: float, high: float) -> int:
    """Return 1 if the entropy is above the band, -1 below, 0 inside."""
    return int(entropy > high) - int(entropy < low)


def kept_rows(advantage: torch.Tensor, mask: torch.Tensor, m: int) -> torch.Tensor:
    """Return `[B]` bool from `[B, T]` advantages, whose sum over a row has the row's sign."""
    return m * (advantage * mask).sum(1) >= 0


def bare_advantage(reward: torch.Tensor, m: int) -> torch.Tensor:
    """Return `[B]`, the released estimator out of band: only what pushes the right way, not normalised."""
    return reward.clamp(min=0) if m > 0 else reward.clamp(max=0)


def method(p: Parameters) -> Method:
    def measure(batch: Batch) -> tuple[float, float, float]:
        """Return the entropy of the step and the band."""
        tokens = batch.mask * (batch.draw == 0).unsqueeze(1)
        low = bound(p.low, p.low_end, batch.progress, p.schedule)
        high = bound(p.high, p.high_end, batch.progress, p.schedule)
        return float((batch.entropy * tokens).sum() / tokens.sum().clamp(min=1)), low, high

    found: dict[str, float] = {}

    def choose(batch: Batch) -> Batch:
        entropy, low, high = measure(batch)
        m = direction(entropy, low, high)
        before = batch.lengths > 0
        if p.mode == "paper":
            keep = kept_rows(batch.advantage, batch.mask, m)
            batch = replace(batch, mask=batch.mask * keep.unsqueeze(1))
        elif m:
            wrong = batch.reward[~batch.correct]
            if m < 0 and len(wrong) and (wrong >= 0).all():
                raise ValueError(
                    "entrocraft's mode `released` learns from negative rewards below the band, and wrong answers get "
                    "none: reward them with -1"
                )
            batch = replace(batch, advantage=bare_advantage(batch.reward, m).unsqueeze(1) * batch.mask)
        after = batch.lengths > 0
        found.update(low=low, high=high, direction=m, kept=float(after.sum() / before.sum().clamp(min=1)))
        return batch

    def report(batch: Batch) -> dict[str, float]:
        logprob = (batch.old_logprob * batch.mask).sum() / batch.mask.sum().clamp(min=1)
        return {**found, "logprob": float(logprob)}

    return Method(
        name="entrocraft",
        paper="arXiv 2604.26326",
        summary="keeps the rows whose sign moves the entropy back into a band that follows a schedule",
        reads=frozenset({"entropy", "step", *(("correct",) if p.mode == "released" else ())}),
        step_controller=choose,
        report=report,
    )
