"""KL-Cov: the tokens that drain entropy most are held back by a penalty on how far they move.

The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, eq. 10, 13, 14, and
verl's `kl_cov`. With N valid tokens in the rows of an update and ln p of the current policy:

    cov_i = (ln p_i - mean ln p) (A_i - mean A), no gradient
    I = the max(1, floor(share N)) tokens of highest cov
    loss_i = -A_i r_i + penalty |ln p_i - ln p_old,i| [i in I]

There is no clipping anywhere, and the clip settings have no effect: keep the learning rate low and the updates few. The
penalty's gradient is 0 as long as the policy is the old one, so that the first update is plain policy gradient.

Means and choice are over the whole optimizer batch, however many micro-batches and processes share it; verl's take each
micro-batch by itself. `share` is a fraction, as in verl; the first repository writes it in percent, 0.2 for 2e-3.

When: as `clip_cov`, where it should be steadier; the paper's strongest. 2e-3 for 7B, 2e-4 for 32B. The paper also drops
groups of equal reward (base `dapo`, or `dynamic_sampling`). Cost: none with one micro-batch in one process; else one
more forward pass over the rows of every update but the first of a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field

from waver.training.rl.batch import Batch
from waver.training.rl.entropy_change import covariance
from waver.training.rl.loss import importance_ratio
from waver.training.rl.method import Method
from waver.training.rl.settings import Settings
from waver.training.strict import Strict

HELD = "kl_cov_held"


class Parameters(Strict):
    share: float = Field(2e-3, gt=0, le=1)
    """Of the tokens, to hold back; k in the paper, as a fraction."""
    penalty: float = Field(1.0, ge=0)
    """Beta: the weight of the absolute log-ratio. Tried 0 to 1; more keeps more entropy, and more steadily."""


def highest(cov: torch.Tensor, mask: torch.Tensor, share: float) -> torch.Tensor:
    """Return the tokens of highest covariance, `[B, T]` bool; never padding."""
    tokens = int((mask > 0).sum())
    places = cov.masked_fill(mask == 0, -torch.inf).flatten().topk(min(tokens, max(1, int(share * tokens)))).indices
    return torch.zeros_like(cov, dtype=torch.bool).flatten().index_fill(0, places, True).view_as(cov)


def method(p: Parameters) -> Method:
    def choose(batch: Batch, settings: Settings) -> Mapping[str, torch.Tensor]:
        held = highest(covariance(batch.logprob, batch.advantage, batch.mask), batch.mask, p.share)
        return {HELD: held.to(batch.mask.dtype)}

    def loss(batch: Batch, settings: Settings) -> torch.Tensor:
        ratio = importance_ratio(batch.logprob, batch.old_logprob, batch.mask, settings.ratio)
        moved = (batch.logprob - batch.old_logprob).masked_fill(batch.measures[HELD] == 0, 0.0).abs()
        return -batch.advantage * ratio + p.penalty * moved

    def report(batch: Batch) -> dict[str, float]:
        cov = covariance(batch.old_logprob, batch.advantage, batch.mask)
        held = highest(cov, batch.mask, p.share)
        tokens, chosen = batch.mask.sum().clamp(min=1), held.sum().clamp(min=1)
        mean = (batch.advantage * batch.mask).sum() / tokens
        return {
            "covariance": float(cov.sum() / tokens),
            "held_covariance": float((cov * held).sum() / chosen),
            "bad_held": float((held & (batch.advantage < mean)).sum() / chosen),
        }

    return Method(
        name="kl_cov",
        paper="arXiv 2505.22617",
        summary="penalises how far the tokens of highest covariance of log-probability and advantage move; no clipping",
        update_controller=choose,
        policy_loss=loss,
        report=report,
    )
