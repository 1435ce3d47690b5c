"""D3S: learn from the rows that differ most, and there from the tokens with the most advantage times entropy.

With A the advantage of a row among all its group, H the entropy of a token (old policy, nats), p the progress:

- rows: the N of the whole batch with the largest variance of A (`intra`: N / G of each prompt's G), A kept as it is
- tokens: of all n valid tokens of these rows together, the ceil(K n) with the largest |A| H; the others weigh 0
- [N, K](p) = (1 - p) [N, K](0) + p [N, K](1): few at first, since sampling down to the end overfits

The rows of largest variance are always the k largest and N - k smallest A for some k, which is tried for all k.

Source: arXiv 2509.22115. Its numbers for N and K were not to be had: 25 % to 50 % of the rows and 10 % to 30 % of their
tokens are ours, as is the mean over kept tokens (`denominator="all"` for all of them) and the order among equals: of
equal rows the later, of equal tokens the earlier. A GSPO ratio is that of all tokens of a row.

Use it with large groups, most of whose rows say little. Averaging over few tokens makes the step on each larger:
compare with a larger learning rate. Choosing uncertain tokens of wrong answers pushes probability away there: watch the
entropy. It reads the final advantage, so it goes with methods that shape it. Costs two sorts of a step's tokens.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from waver.training.rl import Batch, Method, Strict
from waver.training.rl.advantages import group_index


class Parameters(Strict):
    rows: float = Field(0.25, gt=0, le=1)
    """Share of the rows at the start."""
    rows_end: float = Field(0.5, gt=0, le=1)
    tokens: float = Field(0.1, gt=0, le=1)
    """Share of the tokens of these rows at the start."""
    tokens_end: float = Field(0.3, gt=0, le=1)
    scope: Literal["batch", "intra"] = "batch"
    """Rows from the whole batch, or so many from each prompt (D3S-I: for base models that are right rarely)."""


def lerp(start: float, end: float, progress: float) -> float:
    """Interpolate from start to end by the progress of the training."""
    return (1 - progress) * start + progress * end


def nearest(x: float) -> int:
    """Return half upwards."""
    return math.floor(x + 0.5)


def max_variance_subset(values: torch.Tensor, n: int) -> torch.Tensor:
    """Return indices of the n of `[B]` values with the largest variance (exact): the smallest and the largest ones."""
    n = min(n, len(values))
    order = values.argsort(stable=True)
    ascending = values.double()[order]
    ascending = ascending - ascending.mean()
    sums, squares = (torch.cat([x.new_zeros(1), x.cumsum(0)]) for x in (ascending, ascending.square()))
    top = torch.arange(n + 1, device=values.device)
    first = len(values) - top
    mean, square = ((s[n - top] + s[-1] - s[first]) / n for s in (sums, squares))
    k = int((square - mean.square()).argmax())
    return torch.cat([order[: n - k], order[len(values) - k :]])


def chosen_rows(advantage: torch.Tensor, group: torch.Tensor, share: float, scope: str = "batch") -> torch.Tensor:
    """Return `[B]` bool: of `[B]` advantages, a share with the largest variance, over all rows or within each group."""
    chosen = torch.zeros_like(advantage, dtype=torch.bool)
    index = group_index(group)[0] if scope == "intra" else torch.zeros_like(group)
    for i in index.unique():
        rows = (index == i).nonzero().squeeze(1)
        chosen[rows[max_variance_subset(advantage[rows], max(1, nearest(share * len(rows))))]] = True
    return chosen


def top_tokens(key: torch.Tensor, candidates: torch.Tensor, share: float) -> torch.Tensor:
    """Return `[B, T]` bool: the share of the candidates (at least one) with the largest keys."""
    n = int(candidates.sum())
    order = key.masked_fill(~candidates, -1.0).flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(key.numel(), dtype=torch.bool, device=key.device)
    kept[order[: min(n, max(1, math.ceil(share * n - 1e-9)))]] = True
    return kept.view_as(key)


def d3s_mask(
    advantage: torch.Tensor,
    entropy: torch.Tensor,
    mask: torch.Tensor,
    group: torch.Tensor,
    rows: float,
    tokens: float,
    scope: str = "batch",
) -> torch.Tensor:
    """Return `[B, T]` bool from `[B, T]` tensors. Rows without tokens do not count; where every A is 0 nothing is
    kept."""
    valid = mask > 0
    lengths = valid.sum(1)
    there = (lengths > 0).nonzero().squeeze(1)
    if not (advantage * mask).any():
        return torch.zeros_like(valid)
    of_row = (advantage * mask).sum(1) / lengths.clamp(min=1)
    chosen = torch.zeros_like(lengths, dtype=torch.bool)
    chosen[there] = chosen_rows(of_row[there], group[there], rows, scope)
    return top_tokens(advantage.abs() * entropy, valid & chosen.unsqueeze(1), tokens)


def method(p: Parameters) -> Method:
    def weight(batch: Batch) -> torch.Tensor:
        rows, tokens = lerp(p.rows, p.rows_end, batch.progress), lerp(p.tokens, p.tokens_end, batch.progress)
        return d3s_mask(batch.advantage, batch.entropy, batch.mask, batch.group, rows, tokens, p.scope)

    def report(batch: Batch) -> dict[str, float]:
        kept = (batch.mask * batch.weight).sum(1) > 0
        return {
            "rows": float(kept.sum()),
            "tokens": lerp(p.tokens, p.tokens_end, batch.progress),
            "useful": float((batch.advantage[kept] != 0).any(1).float().mean()) if kept.any() else 0.0,
        }

    return Method(
        name="d3s",
        paper="arXiv 2509.22115",
        summary="learns from the rows of largest advantage variance, and there from the tokens of largest |A| H",
        reads=frozenset({"entropy", "step"}),
        token_weight=weight,
        report=report,
        defaults={"denominator": "selected"},
    )
