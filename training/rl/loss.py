"""Compute the token loss: importance ratio, clipping, KL, and the divisors of the summed loss.

Pure functions of `[B, T]` tensors, float32 or wider inside. Where the libraries differ, verl 0.10 is followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from waver.training.rl.batch import at_least_float32

RatioLevel = Literal["token", "gspo", "sequence"]
Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
Denominator = Literal["all", "selected"]
Bound = float | torch.Tensor

LARGEST_LOG_RATIO = 20.0
LARGEST_LOG_GSPO = 10.0
LARGEST_KL = 10.0


def importance_ratio(
    logprob: torch.Tensor, old_logprob: torch.Tensor, mask: torch.Tensor, level: RatioLevel = "token"
) -> torch.Tensor:
    """Return the probability of each drawn token under the policy over that under the old one, `[B, T]`; 1 on padding.

    - `token`: exp(clamp(logprob - old_logprob, -20, 20))
    - `gspo` (arXiv 2507.18071, eq. 7 and 14): exp of the mean log-ratio of the row. The token form: the value is the
      row's, the gradient each token's own. With advantages that are constant in a row it is the gradient of the row
      form.
    - `sequence` (RLOO, arXiv 2402.14740, as in TRL): exp of the summed log-ratio of the row.
    """
    valid = mask > 0
    log_ratio = (at_least_float32(logprob) - at_least_float32(old_logprob)).masked_fill(~valid, 0.0)
    match level:
        case "token":
            return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
        case "gspo":
            row = log_ratio.detach().sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
            log_row = (row + log_ratio - log_ratio.detach()).clamp(max=LARGEST_LOG_GSPO)
            return log_row.exp().masked_fill(~valid, 1.0)
        case "sequence":
            total = log_ratio.sum(1, keepdim=True).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
            return total.exp().expand_as(log_ratio).masked_fill(~valid, 1.0)


def clipped_loss(
    ratio: torch.Tensor, advantage: torch.Tensor, low: Bound = 0.2, high: Bound = 0.2, dual: float | None = None
) -> torch.Tensor:
    """Return max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), `[B, T]` (PPO; unequal bounds: DAPO, arXiv 2503.14476).

    Positively homogeneous in A: a weight w >= 0 may be folded into the advantage.

    Args:
        low, high: numbers, or tensors that broadcast to `[B, T]`.
        dual: where A < 0 no loss exceeds -A times this (dual clip, arXiv 1912.09729); none without it.
    """
    bounded = torch.maximum(torch.minimum(ratio, ratio.new_ones(()) + high), ratio.new_ones(()) - low)
    loss = torch.maximum(-advantage * ratio, -advantage * bounded)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual), loss)


def clipped(ratio: torch.Tensor, advantage: torch.Tensor, low: Bound = 0.2, high: Bound = 0.2) -> torch.Tensor:
    """Tell where clipping takes the gradient away, `[B, T]` bool (the dual clip left aside)."""
    return ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))


def k3(logprob: torch.Tensor, ref_logprob: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the k3 estimate of KL(policy || reference), exp(d) - d - 1 with d = ref_logprob - logprob: `[B, T]` nats.

    d is clamped to ±20 and the estimate to at most 10, as in verl; 0 on padding.
    """
    d = (
        (at_least_float32(ref_logprob) - at_least_float32(logprob))
        .masked_fill(mask == 0, 0.0)
        .clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    )
    return (d.exp() - d - 1).clamp(max=LARGEST_KL)


def aggregate(
    loss: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor | None = None,
    mode: Aggregation = "token-mean",
    denominator: Denominator = "all",
    *,
    counted: torch.Tensor | None = None,
    totals: Mapping[str, float] | None = None,
    constant: float | None = None,
) -> torch.Tensor:
    """Return one number from a `[B, T]` loss. With m the mask and w the weight:

    - `token-mean`: sum(l m w) / tokens
    - `seq-mean-token-mean`: the sum over rows of (sum_t l m w / tokens of the row), / rows
    - `seq-mean-token-sum`: sum(l m w) / rows
    - `seq-mean-token-sum-norm` (Dr.GRPO): sum(l m w) / (rows times `constant`)

    Under the denominator `all` every valid token counts as 1 and every row that has one; under `selected` a token
    counts as its w, and only rows where some w is positive. A denominator of 0 gives a loss of 0.

    Args:
        weight: `[B, T]` at least 0, without gradient; 1 if left out.
        counted: the weight that `selected` counts, if it is not `weight`.
        totals: the sums over the whole optimizer batch (`Batch.counted`) if these rows are a part of it; the results of
            all parts then add up to the result of the whole.
        constant: the divisor of `seq-mean-token-sum-norm`, such as the longest response that is allowed.

    Raises:
        ValueError: the mode needs a constant and there is none.
    """
    valid = mask > 0
    w = torch.ones_like(loss) if weight is None else weight
    terms = (loss * w).masked_fill(~valid, 0.0)
    counts = valid.to(loss.dtype) if denominator == "all" else (w if counted is None else counted) * valid
    per_row = counts.sum(1)
    names = ("tokens", "rows") if denominator == "all" else ("selected", "selected_rows")
    tokens, rows = (totals[n] for n in names) if totals else (float(per_row.sum()), float((per_row > 0).sum()))
    match mode:
        case "token-mean":
            divisor = tokens
        case "seq-mean-token-mean":
            terms = terms / torch.where(per_row > 0, per_row, 1.0).unsqueeze(1)
            divisor = rows
        case "seq-mean-token-sum":
            divisor = rows
        case "seq-mean-token-sum-norm":
            if constant is None:
                raise ValueError("seq-mean-token-sum-norm divides by a constant: set `max_length`")
            divisor = rows * constant
    return terms.sum() / (divisor or 1.0)
