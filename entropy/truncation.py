"""Common truncations of the next-token distribution, as batched functions on `[rows, vocab]` logits after temperature.

Every function takes one parameter a row (`[rows]`) and returns a `Crop`. Masked tokens (`-inf`) are not part of a row's
distribution and never come back. The most likely token stays, but for `typical`, which may drop it by definition.
Equal logits at the end of a set that is cut by rank are told apart arbitrarily.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from waver.entropy.shannon import shannon_entropy

POOL = 1024
"""Tokens that are ranked at first; a row that needs more is sorted whole, at some twenty times the cost."""
TOP_H_POOL = 100
"""Tokens that the running form of Top-H considers."""


class Crop(NamedTuple):
    """A truncated batch: `logits` `[rows, vocab]` with what was dropped at `-inf` and the rest as it was, how many
    tokens were `kept` (`[rows]`, int64), and the `entropy` of what is left (`[rows]`, nats)."""

    logits: torch.Tensor
    kept: torch.Tensor
    entropy: torch.Tensor


def top_k(logits: torch.Tensor, k: torch.Tensor) -> Crop:
    """Keep the `k` most likely tokens; `k` is an integer of at least 1."""
    values, ids = logits.topk(min(int(k.max()), logits.shape[-1]), dim=-1)
    return keep_first(logits, values, ids, k)


def top_p(logits: torch.Tensor, p: torch.Tensor) -> Crop:
    """Keep the smallest set of most likely tokens whose mass reaches `p`: a token stays while the mass before it is
    less (Holtzman et al., arXiv 1904.09751)."""

    def attempt(width: int, logits: torch.Tensor, p: torch.Tensor) -> tuple[Crop, torch.Tensor]:
        values, ids = logits.topk(width, dim=-1)
        mass = logits.softmax(-1).gather(-1, ids).double()
        n = ((mass.cumsum(-1) - mass < p[:, None]) | (p[:, None] >= 1)).sum(-1)
        return keep_first(logits, values, ids, n), n >= width

    return rank_progressively(attempt, (POOL, logits.shape[-1]), logits, p)


def min_p(logits: torch.Tensor, p: torch.Tensor) -> Crop:
    """Keep tokens at least `p` times as likely as the most likely one (Nguyen et al., arXiv 2407.01082)."""
    return _above(logits, logits.amax(-1) + p.log())


def epsilon(logits: torch.Tensor, epsilon: torch.Tensor) -> Crop:
    """Keep tokens with a probability of at least `epsilon` (Hewitt et al., arXiv 2210.15191)."""
    return _above(logits, logits.logsumexp(-1) + epsilon.log())


def eta(logits: torch.Tensor, epsilon: torch.Tensor) -> Crop:
    """Keep tokens with a probability of at least min(ε, √ε exp(-H)), H the entropy (Hewitt et al., arXiv
    2210.15191)."""
    cut = torch.minimum(epsilon.log(), epsilon.log() / 2 - shannon_entropy(logits))
    return _above(logits, logits.logsumexp(-1) + cut)


def typical(logits: torch.Tensor, p: torch.Tensor) -> Crop:
    """Keep the tokens whose surprisal is nearest to the entropy, s = |-log p - H|, until their mass reaches `p`, and
    all that tie with the last of them in s (Meister et al., arXiv 2202.00666). The most likely token may be dropped."""
    surprisal = logits.logsumexp(-1, keepdim=True) - logits
    nearness = -(surprisal - shannon_entropy(logits)[:, None]).abs()

    def attempt(width: int, logits: torch.Tensor, nearness: torch.Tensor, p: torch.Tensor) -> tuple[Crop, torch.Tensor]:
        ranked, ids = nearness.topk(width, dim=-1)
        mass = logits.softmax(-1).gather(-1, ids).double()
        n = (mass.cumsum(-1) - mass < p[:, None]).sum(-1).clamp(min=1)
        every = (p >= 1.0)[:, None] & (logits > -torch.inf)  # float32 masses may add up to 1 before the last
        return keep_where(logits, every | (nearness >= ranked.gather(-1, n[:, None] - 1))), n >= width

    return rank_progressively(attempt, (POOL, logits.shape[-1]), logits, nearness, p)


def top_n_sigma(logits: torch.Tensor, n: torch.Tensor) -> Crop:
    """Keep logits within `n` standard deviations (divisor: tokens - 1) of the largest; no temperature changes this set
    (Tang et al., arXiv 2411.07641)."""
    possible = logits > -torch.inf
    count = possible.sum(-1)
    mean = logits.masked_fill(~possible, 0.0).sum(-1) / count
    squares = (logits - mean[:, None]).masked_fill(~possible, 0.0).square().sum(-1)
    return _above(logits, logits.amax(-1) - n * (squares / (count - 1).clamp(min=1)).sqrt())


def top_h_running(logits: torch.Tensor, alpha: torch.Tensor) -> Crop:
    """Apply Top-H as its authors released it: over the 100 most likely tokens, in descending order, while the running
    sum of -p log p is at most `alpha` times its total over the 100 (Top-H, arXiv 2509.02510). A version that
    renormalises the 100 first is in use too: it is this one on what `top_k` leaves of 100."""
    values, ids = logits.topk(min(TOP_H_POOL, logits.shape[-1]), dim=-1)
    running = torch.special.entr((values.double() - logits.logsumexp(-1, keepdim=True)).exp()).cumsum(-1)
    n = (running <= alpha[:, None] * running[:, -1:]).sum(-1)
    return keep_first(logits, values, ids, n)


def top_h_renormalised(logits: torch.Tensor, alpha: torch.Tensor) -> Crop:
    """Apply Top-H as in its paper: the most likely tokens, in descending order, while the entropy of their renormalised
    distribution is at most `alpha` times that of the whole (Top-H, arXiv 2509.02510)."""

    def attempt(width: int, logits: torch.Tensor, limit: torch.Tensor) -> tuple[Crop, torch.Tensor]:
        values, ids = logits.topk(width, dim=-1)
        n = (prefix_entropies(values) <= limit[:, None]).sum(-1)  # it grows with every token, so they are the first
        return keep_first(logits, values, ids, n), n >= width

    limit = torch.where(alpha < 1, alpha * shannon_entropy(logits), torch.inf)
    return rank_progressively(attempt, (POOL, logits.shape[-1]), logits, limit)


def prefix_entropies(values: torch.Tensor) -> torch.Tensor:
    """Compute H of the renormalised first k tokens for every k: `[rows, k]` float64 nats, from descending logits."""
    centred = values.double() - values[:, :1].double()
    weights = centred.exp()
    mass = weights.cumsum(-1)
    return mass.log() - (weights * centred).nan_to_num(0.0).cumsum(-1) / mass


def keep_where(logits: torch.Tensor, keep: torch.Tensor) -> Crop:
    """Keep the logits that a mask of the same shape selects: `[rows, vocab]` both."""
    left = logits.masked_fill(~keep, -torch.inf)
    return Crop(left, (left > -torch.inf).sum(-1), shannon_entropy(left))


def keep_ranked(logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, drop: torch.Tensor) -> Crop:
    """Keep the tokens `ids` of `[rows, vocab]` logits, except those that `drop` marks, and no others; `values` are
    their logits. `[rows, k]` each."""
    values = values.masked_fill(drop, -torch.inf)
    left = torch.full_like(logits, -torch.inf).scatter_(-1, ids, values)
    return Crop(left, (values > -torch.inf).sum(-1), shannon_entropy(values))


def keep_first(logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, n: torch.Tensor) -> Crop:
    """Keep the first `n` (`[rows]`, 0 counts as 1) of the tokens `ids`, which are in descending order of their
    `values`."""
    return keep_ranked(logits, values, ids, torch.arange(values.shape[-1], device=n.device) >= n.clamp(min=1)[:, None])


def rank_progressively(
    attempt: Callable[..., tuple[Crop, torch.Tensor]], widths: Sequence[int], *rows: torch.Tensor
) -> Crop:
    """Rank few tokens at first, and more only for the rows that need more.

    Args:
        attempt: `attempt(width, *rows)` gives the crop by the first `width` tokens, and which rows these were too few
            for (`[rows]` or `[rows, 1]` bool); the last width is enough for all.
    """
    vocab = rows[0].shape[-1]
    crop, short = attempt(min(widths[0], vocab), *rows)
    if len(widths) > 1 and widths[0] < vocab and len(rest := short.nonzero()[:, 0]):
        again = rank_progressively(attempt, widths[1:], *(row[rest] for row in rows))
        for whole, part in zip(crop, again, strict=True):
            whole[rest] = part
    return crop


def _above(logits: torch.Tensor, cut: torch.Tensor) -> Crop:
    """Keep logits of at least `cut` (`[rows]`), and the largest whatever it is."""
    return keep_where(logits, logits >= torch.minimum(cut.to(logits.dtype), logits.amax(-1))[:, None])
