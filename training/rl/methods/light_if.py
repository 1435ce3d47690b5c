"""TEA-RL of Light-IF (arXiv 2508.03178): an entropy bonus that is largest where entropy drains.

For all valid tokens of an update, with ln p and H of the policy as it is now:

    cov_it = (A_it - mean A) (ln p_it - mean ln p)                          no gradient
    coef_it = clip(alpha softmax_t(cov_i.), 0, cap)                         over the tokens of a response
    loss = policy loss + 0.001 k3 - scale sum(coef H) / tokens              H with gradient

A token that is likely and good, or unlikely and bad, is one whose update lowers the entropy (arXiv 2505.22617): there
the bonus stands against it. The strength falls with the length by design: a response of L tokens has a mean coefficient
of alpha / L where the cap does not bite, 0.0025 at 4,000 tokens. Below 500 tokens set `alpha_length` (alpha L / 4000
in place of alpha) or a small `scale`.

Formulas and values are those of the released function (`compute_entropy_with_cov`); the released actor never applies
it. Deviations: means are over the whole update and not over a micro-batch; the coefficients carry no gradient
(`detach_weights: false` lets it through, as the release does); a response without tokens has none. `scope: batch` is
what an independent account gives as the paper's form, not verified: softmax over all tokens T at temperature `tau`,
weights at most `batch_cap` / T, a weighted mean of H times 0.05 (or T sum w H, with `literal`).

`zero` adds the reward of the recipe's first stage, in which thoughts grow, for a response of L tokens and a score:

    f = (1 - cos(pi L / longest)) / 2;  + 2 score f if score >= 0.2, else - f;  - 2 if L >= longest

When: long reasoning for instructions with many constraints (`--task instructions`), from a cold start by
`waver tune --keep 0.8`; easy questions first, then the hard ones. Cost: the entropies with gradient, and, where an
update has several micro-batches, one more forward pass over its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from waver.entropy import shannon_entropy
from waver.training.rl.batch import Batch
from waver.training.rl.entropy_change import covariance
from waver.training.rl.method import Measure, Method
from waver.training.rl.settings import Settings
from waver.training.strict import Strict

COEFFICIENT, MEAN_A, MEAN_LOGPROB = "light_if_coefficient", "light_if_mean_a", "light_if_mean_logprob"
BATCH_SCALE = 0.05
SOLVED = 0.2
"""Score from which an answer may be long."""


class Parameters(Strict):
    alpha: float = Field(10.0, gt=0)
    cap: float = Field(5.0, gt=0)
    alpha_length: float | None = Field(None, gt=0)
    """Length at which alpha holds; alpha grows with the response's length then. None: the same for all."""
    scale: float | None = Field(None, ge=0)
    """Of the whole term: 1, and 0.05 for `scope: batch`, if left out."""
    detach_weights: bool = True
    scope: Literal["response", "batch"] = "response"
    tau: float = Field(1.0, gt=0)
    batch_cap: float = Field(100.0, gt=0)
    literal: bool = False
    zero: bool = False
    longest: int = Field(8192, ge=1)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.scope == "batch" and not self.detach_weights:
            raise ValueError("weights over a whole batch carry no gradient: leave detach_weights on")
        return self


def coefficients(cov: torch.Tensor, mask: torch.Tensor, alpha: torch.Tensor | float, cap: float) -> torch.Tensor:
    """Return clip(alpha softmax(cov), 0, cap) over the valid tokens of each row, `[B, T]`; 0 on padding.

    Args:
        alpha: a number, or `[B, 1]`.
    """
    return (alpha * row_softmax(cov, mask)).clamp(0, cap)


def row_softmax(cov: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the valid tokens of each row; a row without any is 0."""
    valid = mask > 0
    # A finite number in place of -inf: a row of -inf alone would be NaN, in the gradient too.
    shares = torch.where(valid, cov, torch.finfo(cov.dtype).min).softmax(1)
    return torch.where(valid, shares, 0.0)


def batch_weights(cov: torch.Tensor, mask: torch.Tensor, tau: float, cap: float) -> torch.Tensor:
    """Return min(softmax(cov / tau), cap / T) over all T valid tokens, `[B, T]`; 0 on padding."""
    valid = mask > 0
    found = torch.zeros_like(cov)
    found[valid] = (cov[valid] / tau).softmax(0).clamp(max=cap / max(1, int(valid.sum())))
    return found


def length_reward(score: torch.Tensor, lengths: torch.Tensor, longest: int = 8192) -> torch.Tensor:
    """Return what the length of an answer adds to its score, `[B]`: longer is better where it is right, and worse where
    it is wrong.

    Args:
        lengths: `[B]` tokens.
    """
    grown = 0.5 * (1 - torch.cos(math.pi * lengths / longest))
    found = torch.where(score >= SOLVED, 2 * score * grown, -grown)
    return torch.where(lengths >= longest, torch.full_like(found, -2.0), found)


def method(p: Parameters) -> Method:
    scale = p.scale if p.scale is not None else (BATCH_SCALE if p.scope == "batch" else 1.0)

    def weigh(cov: torch.Tensor, batch: Batch) -> torch.Tensor:
        if p.scope == "batch":
            return batch_weights(cov, batch.mask, p.tau, p.batch_cap)
        alpha = p.alpha if p.alpha_length is None else p.alpha * batch.lengths.unsqueeze(1) / p.alpha_length
        return coefficients(cov, batch.mask, alpha, p.cap)

    def begin(batch: Batch, settings: Settings) -> Mapping[str, torch.Tensor]:
        valid, rows = batch.mask > 0, batch.mask.new_ones(len(batch))
        means = {MEAN_A: batch.advantage, MEAN_LOGPROB: batch.logprob.detach()}
        tokens = valid.sum().clamp(min=1)
        found = {name: rows * x.masked_fill(~valid, 0.0).sum() / tokens for name, x in means.items()}
        cov = covariance(batch.logprob, batch.advantage, batch.mask)
        return {**found, COEFFICIENT: weigh(cov, batch).to(batch.mask.dtype)}

    def bonus(batch: Batch, settings: Settings) -> torch.Tensor:
        coefficient = batch.measures[COEFFICIENT]
        if not p.detach_weights:
            centred = batch.logprob - batch.measures[MEAN_LOGPROB].unsqueeze(1)
            cov = (batch.advantage - batch.measures[MEAN_A].unsqueeze(1)) * centred
            coefficient = weigh(cov, batch)
        total = (coefficient * batch.live["entropy"]).masked_fill(batch.mask == 0, 0.0).sum()
        if p.scope == "batch":
            divisor = 1.0 if p.literal else batch.totals[COEFFICIENT] or 1.0
            total = total * (batch.totals["tokens"] if p.literal else 1.0) / divisor
        else:
            total = total / (batch.totals["tokens"] or 1.0)
        return -scale * total

    def reward(batch: Batch) -> torch.Tensor:
        return batch.reward + length_reward(batch.reward, batch.lengths, p.longest)

    def report(batch: Batch) -> dict[str, float]:
        cov = covariance(batch.old_logprob, batch.advantage, batch.mask)
        found = weigh(cov, batch)[batch.mask > 0]
        most = p.batch_cap / max(1, len(found)) if p.scope == "batch" else p.cap
        if not len(found):
            return {}
        return {"coefficient": float(found.mean()), "capped": float((found >= most).float().mean())}

    return Method(
        name="light_if",
        paper="arXiv 2508.03178",
        summary="adds an entropy bonus where log-probability and advantage vary together, and entropy drains",
        reward=reward if p.zero else None,
        update_controller=begin,
        extra_loss=bonus,
        report=report,
        measures=(Measure("entropy", shannon_entropy, old=False, live=True),),
        defaults={"clip_low": 1.0, "clip_high": 1.0, "dual_clip": 10.0, "aggregation": "token-mean", "kl": 0.001},
    )
