r"""SPINE, with TTRL's majority vote: learn without labels, and only at the tokens where an answer forks.

TTRL: the label of a question is the answer that most of its rows give; a row that gives it is rewarded with 1. SPINE
keeps that from collapsing. Per row, over its valid tokens, entropies H in nats of the old policy:

- forks S, `top`: the ceil(share n) tokens with the largest H; `otsu`: H >= the Otsu threshold of the row's H (100 bins)
- band, `top`: from the 10 % to the 50 % quantile of H over S; `otsu`: from c - 1.4826 MAD (at least 0) to c, the median
  of S, MAD the median of |H - c|
- loss = sum_S (clipped loss) / Z + sum_S (band_low max(0, lower - H) + band_high max(0, H - upper)) / D
  + kl sum_S KL / |S|, with H in the hinges as the policy is now

Z are all tokens. D is `band_over`: all tokens, or |S|. Tokens outside S get no gradient from any term.

Source: arXiv 2511.17938, v1 (`top`) and v2 (`otsu`), and TTRL, arXiv 2504.16084. Its code and coefficients were not to
be had; the equations come from accounts of them. Reconstructed: both band weights, the weight of the KL term, D = |S|,
forks and band found once a step instead of at each update (the same on-policy), ties in a vote (the smallest string),
no reward where no row has an answer. KL is the k3 estimate at the sampled tokens instead of the exact divergence.

Use it to adapt to unlabelled questions that the model gets right more often than any one wrong way; never report the
score on these very questions as generalisation. The band squeezes spread, it is no anchor: with D all tokens the
entropy can end below TTRL's, so keep the KL term. Log the response length: very short answers train exactly the tokens
that shorten them. Costs a sort or a histogram for each row.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field

from waver.entropy import shannon_entropy
from waver.training.rl import Batch, Measure, Method, Rollouts, Settings, Strict
from waver.training.rl.advantages import group_index
from waver.training.rl.loss import k3

BINS = 100


class Parameters(Strict):
    selection: Literal["otsu", "top"] = "otsu"
    share: float = Field(0.2, gt=0, le=1)
    """Of a row's tokens, with `top`."""
    band_low: float = Field(0.01, ge=0)
    """Weight of what is missing to the lower bound."""
    band_high: float = Field(0.01, ge=0)
    band_over: Literal["selected", "all"] = "selected"
    kl: float = Field(1e-3, ge=0)
    """Weight of the divergence from the reference at the forks."""
    trained: int | None = Field(None, ge=2)
    """Rows of each question to learn from, the first ones; the others only vote (TTRL: 32 of 64)."""


@dataclass(frozen=True)
class Vote:
    """The answer that a question's rows elected."""

    label: str | None
    reward: list[float]
    majority: float
    """Votes of the winner, of all rows."""


def boxed_answer(text: str) -> str | None:
    r"""Return what the last `\boxed{...}` holds, or None: nothing else ever becomes a label."""
    starts = [m.end() for m in re.finditer(r"\\boxed\s*\{", text)]
    if not starts:
        return None
    depth = 1
    for i in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[starts[-1] : i].strip() or None
    return None


def _winner(answers: Sequence[str | None]) -> str | None:
    counts = Counter(a for a in answers if a is not None)
    return min(counts, key=lambda a: (-counts[a], a)) if counts else None


def vote(
    answers: Sequence[str | None],
    same: Callable[[str, str], bool] = str.__eq__,
    leave_one_out: bool = False,
) -> Vote:
    """Return the vote over the rows of one question.

    Args:
        answers: one for each row, None where none was found.
        same: whether an answer means the same as the label.
        leave_one_out: judge each row by the vote of the others.
    """
    label = _winner(answers)
    reward = []
    for i, answer in enumerate(answers):
        elected = _winner([*answers[:i], *answers[i + 1 :]]) if leave_one_out else label
        reward.append(float(answer is not None and elected is not None and same(answer, elected)))
    return Vote(label, reward, answers.count(label) / len(answers) if label is not None else 0.0)


def majority_reward(
    answers: Sequence[str | None],
    group: torch.Tensor,
    same: Callable[[str, str], bool] = str.__eq__,
    leave_one_out: bool = False,
) -> torch.Tensor:
    """Return `[B]` rewards by the vote of each row's group; rows of a group need not lie side by side."""
    index, sizes = group_index(group)
    reward = torch.zeros(len(answers))
    for g in range(len(sizes)):
        rows = (index == g).nonzero().squeeze(1).tolist()
        reward[rows] = torch.tensor(vote([answers[r] for r in rows], same, leave_one_out).reward)
    return reward


def top_forks(entropy: torch.Tensor, mask: torch.Tensor, share: float) -> torch.Tensor:
    """Return `[B, T]` bool: the ceil(share n) tokens of each row with the most entropy; of equal ones the earlier."""
    valid = mask > 0
    order = entropy.masked_fill(~valid, -1.0).argsort(dim=1, descending=True, stable=True)
    n = (share * valid.sum(1, keepdim=True) - 1e-6).ceil().long()
    return (order.argsort(1) < n) & valid


def otsu_threshold(entropy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return `[B, 1]`: the bin centre that best splits each row's entropies in two; all of them where they are
    equal."""
    valid = mask > 0
    low = entropy.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = entropy.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    width = ((high - low) / BINS).nan_to_num(0.0, 0.0, 0.0)
    spread = width > 0
    bin_of = (
        torch.where(valid & spread, (entropy - low) / torch.where(spread, width, 1.0), 0.0).long().clamp(0, BINS - 1)
    )
    counts = entropy.new_zeros(len(entropy), BINS).scatter_add_(1, bin_of, valid.to(entropy.dtype))
    centres = low + (torch.arange(BINS, device=entropy.device) + 0.5) * width
    sums = counts * centres.nan_to_num(0.0, 0.0, 0.0)
    w0, s0 = counts.cumsum(1)[:, :-1], sums.cumsum(1)[:, :-1]
    w1, s1 = counts.sum(1, keepdim=True) - w0, sums.sum(1, keepdim=True) - s0
    between = w0 * w1 * (s0 / w0.clamp(min=1) - s1 / w1.clamp(min=1)).square()
    return torch.where(spread, centres.gather(1, between.argmax(1, keepdim=True)), low)


def band(entropy: torch.Tensor, forks: torch.Tensor, selection: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lower and upper bound for each row, `[B, 1]` each; 0 for a row without forks."""
    chosen = entropy.masked_fill(~forks, torch.nan)
    centre = chosen.nanquantile(0.5, 1, keepdim=True)
    if selection == "top":
        lower = chosen.nanquantile(0.1, 1, keepdim=True)
    else:
        deviation = (chosen - centre).abs().nanquantile(0.5, 1, keepdim=True)
        lower = (centre - (1.4826 * deviation).clamp(min=1e-6)).clamp(min=0)
    return lower.nan_to_num(0.0), centre.nan_to_num(0.0)


def hinges(entropy: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return the weighted distance outside the band, `[B, T]`; on a bound, such as the median, without gradient."""
    return low * (lower - entropy).relu() + high * (entropy - upper).relu()


def method(p: Parameters) -> Method:
    def first_rows(rollouts: Rollouts) -> torch.Tensor:
        index, _ = group_index(rollouts.group)
        one_hot = index.unsqueeze(1) == torch.arange(int(index.max()) + 1, device=index.device)
        return one_hot.long().cumsum(0).gather(1, index.unsqueeze(1)).squeeze(1) <= (p.trained or math.inf)

    def select(batch: Batch) -> Batch:
        entropy = batch.entropy
        if p.selection == "top":
            forks = top_forks(entropy, batch.mask, p.share)
        else:
            forks = (entropy >= otsu_threshold(entropy, batch.mask)) & (batch.mask > 0)
        lower, upper = band(entropy, forks, p.selection)
        found = {"forks": forks.to(batch.mask.dtype), "band_lower": lower, "band_upper": upper}
        return replace(batch, measures={**batch.measures, **found})

    def regularise(batch: Batch, settings: Settings) -> torch.Tensor:
        m, totals = batch.measures["forks"] * (batch.mask > 0), batch.totals
        outside = hinges(
            batch.live["entropy"], batch.measures["band_lower"], batch.measures["band_upper"], p.band_low, p.band_high
        )
        divisor = totals["forks" if p.band_over == "selected" else "tokens"]
        loss = outside.masked_fill(m == 0, 0.0).sum() / (divisor or 1.0)
        if p.kl:
            loss = loss + p.kl * (k3(batch.logprob, batch.reference, m)).sum() / (totals["forks"] or 1.0)
        return loss

    def report(batch: Batch) -> dict[str, float]:
        m = batch.measures["forks"] * batch.mask
        forks = m.sum().clamp(min=1)
        return {
            "forks": float(m.sum() / batch.mask.sum().clamp(min=1)),
            "fork_entropy": float((batch.entropy * m).sum() / forks),
            "lower": float((batch.measures["band_lower"] * m).sum() / forks),
            "upper": float((batch.measures["band_upper"] * m).sum() / forks),
        }

    return Method(
        name="spine",
        paper="arXiv 2511.17938",
        summary="learns at each row's forking tokens only, and holds their entropy in a band",
        reads=frozenset({"entropy"}),
        rollout_filter=first_rows if p.trained else None,
        step_controller=select,
        token_weight=lambda batch: batch.measures["forks"],
        extra_loss=regularise,
        report=report,
        measures=(Measure("entropy", shannon_entropy, old=False, live=True),),
        needs_reference=p.kl > 0,
    )
