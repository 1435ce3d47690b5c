"""Clip_B and Clip_V: unlikely tokens whose punishment would lower the entropy most are not learned from.

On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, arXiv 2602.03392, and the example
`entropy` of Trinity-RFT. With p probability of the sampled token and H entropy, both of the old policy:

    S   = p (H + ln p)
    nec = E[S] = H sum_i p_i^2 + sum_i p_i^2 ln p_i over the vocabulary
    a step on the token changes H by -(learning rate) r A (S - E[S]), to first order

    rule="batch" (Clip_B):       drop if A < 0 and mean(S) - S > threshold sd(S)
    rule="vocabulary" (Clip_V):  D = nec - S; drop if A <= 0 and D > threshold sd(D);
                                 if these are more than max(1, floor(max_share N)) of the N valid tokens, drop the
                                 largest D with A < 0 instead, so many

Means and (population) standard deviations are over the valid tokens of the whole step; a spread below 1e-12 drops
nothing. Advantages come first, from all tokens. As in the code, tokens that are dropped leave the denominator of the
loss (`denominator: selected`); a KL term, which the papers do without, still sees them. `signs="both"` is the theory's
general form in our reading: tokens with A > 0 are dropped by the same rule with the sign of S - E[S] turned. The code
has no such thing.

When: entropy falls although rewards are mixed, and wrong answers abound: it is their unlikely tokens that are spared.
The threshold sets the share that is dropped, which depends on the tails: watch `dropped`, and aim at 0.01 % to 1 % with
Clip_B. Larger shares keep much entropy and learn slowly. Cost: Clip_B none, Clip_V one pass over the logits.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from waver.training.rl.batch import Batch
from waver.training.rl.entropy_change import discriminator, expected_discriminator
from waver.training.rl.method import Measure, Method
from waver.training.strict import Strict

THRESHOLDS = {"batch": 2.5, "vocabulary": 8.5}
NO_SPREAD = 1e-12
Signs = Literal["negative", "both"]


class Parameters(Strict):
    rule: Literal["batch", "vocabulary"] = "batch"
    threshold: float | None = Field(None, gt=0)
    """Mu, in standard deviations: 2.5 for the batch (tried 2 to 3), 8.5 for the vocabulary (7.5 to 8.5)."""
    max_share: float = Field(1e-4, gt=0, le=1)
    """Of the tokens, that Clip_V may drop."""
    signs: Signs = "negative"


def spread(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and population standard deviation over the valid tokens."""
    valid = x[mask > 0]
    return (valid.mean(), valid.std(correction=0)) if len(valid) else (x.new_zeros(()), x.new_zeros(()))


def clip_b(
    s: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor, threshold: float = 2.5, signs: Signs = "negative"
) -> torch.Tensor:
    """Select the tokens to keep, `[B, T]` bool, by the batch mean of S."""
    mean, sd = spread(s, mask)
    if sd < NO_SPREAD:
        return torch.ones_like(mask, dtype=torch.bool)
    drop = (advantage < 0) & (mean - s > threshold * sd)
    if signs == "both":
        drop |= (advantage > 0) & (s - mean > threshold * sd)
    return ~drop


def clip_v(
    s: torch.Tensor,
    nec: torch.Tensor,
    advantage: torch.Tensor,
    mask: torch.Tensor,
    threshold: float = 8.5,
    max_share: float = 1e-4,
    signs: Signs = "negative",
) -> torch.Tensor:
    """Select the tokens to keep, `[B, T]` bool, by the mean of S over the vocabulary at each position."""
    lowers = nec - s
    _, sd = spread(lowers, mask)
    if sd < NO_SPREAD:
        return torch.ones_like(mask, dtype=torch.bool)
    if signs == "both":
        lowers = torch.where(advantage > 0, -lowers, lowers)
    drop = (mask > 0) & (lowers > threshold * sd)
    if signs == "negative":
        drop &= advantage <= 0
    most = max(1, int(max_share * int((mask > 0).sum())))
    if int(drop.sum()) > most:
        places = lowers.masked_fill(~drop | (advantage == 0), -torch.inf).flatten()
        chosen = places.topk(most)
        largest = chosen.indices[chosen.values > -torch.inf]
        drop = torch.zeros_like(drop).flatten().index_fill(0, largest, True).view_as(drop)
    return ~drop


def method(p: Parameters) -> Method:
    threshold = THRESHOLDS[p.rule] if p.threshold is None else p.threshold

    def keep(batch: Batch) -> torch.Tensor:
        s = discriminator(batch.old_logprob, batch.entropy)
        if p.rule == "batch":
            return clip_b(s, batch.advantage, batch.mask, threshold, p.signs)
        return clip_v(s, batch.measures["nec"], batch.advantage, batch.mask, threshold, p.max_share, p.signs)

    def report(batch: Batch) -> dict[str, float]:
        s = discriminator(batch.old_logprob, batch.entropy)
        tokens = batch.mask.sum().clamp(min=1)
        found = {
            "discriminator": float(spread(s, batch.mask)[0]),
            "dropped": float((~keep(batch) & (batch.mask > 0)).sum() / tokens),
        }
        if "nec" in batch.measures:
            found["deviation"] = float(spread(s - batch.measures["nec"], batch.mask)[0])
        return found

    return Method(
        name="entropy_dynamics",
        paper="arXiv 2602.03392",
        summary="spares the unlikely tokens of wrong answers whose punishment would lower the entropy most",
        reads=frozenset({"entropy"}),
        token_weight=lambda batch: keep(batch).to(batch.mask.dtype),
        report=report,
        measures=(Measure("nec", expected_discriminator),) if p.rule == "vocabulary" else (),
        defaults={"denominator": "selected"},
    )
