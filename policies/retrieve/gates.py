"""What tells whether a model needs to look something up: the scores of L-RAG's gate and of its rivals, in nats.

Pure functions of what a draft's tokens say. Sources: L-RAG (arXiv 2601.06551), TARG (2511.09803), FLARE (2305.06983),
DRAGIN (2403.10081), SeaKR (2406.19215).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

import torch

Pooling = Literal["mean", "first", "max", "prefix_k"]

RIDGE = 1e-3
"""SeaKR's α: keeps the determinant of few or equal samples away from zero."""


def pooled(entropies: Sequence[float], pooling: Pooling, k: int) -> float:
    """One number for the entropies of a draft's tokens (at least one); `k` is the length of the prefix in `prefix_k`.
    L-RAG."""
    match pooling:
        case "first":
            return entropies[0]
        case "max":
            return max(entropies)
        case "prefix_k":
            entropies = entropies[:k]
    return sum(entropies) / len(entropies)


def closeness(gap: float) -> float:
    """exp(-gap) of the two likeliest tokens, in (0, 1]: 1 where they are equally likely. `gap` is the difference of
    their log-probabilities, which is that of their logits. A margin gate takes the mean over its draft. TARG; the link
    is a reconstruction."""
    return math.exp(-gap)


def disagreement(samples: Sequence[Sequence[int]]) -> float:
    """How much sampled prefixes differ: at each position 1 - Σ f², f the shares of the tokens that stand there (the
    total variance of their one-hot vectors), averaged over positions. A sample that has ended counts as another token.
    TARG names a variance over sampled prefixes without a formula; this is a reconstruction."""
    columns = [Counter(column) for column in zip_longest(*samples)]
    return sum(1 - sum((n / len(samples)) ** 2 for n in column.values()) for column in columns) / len(columns)


def weighted_entropies(attention: Sequence[float], entropies: Sequence[float]) -> list[float]:
    """DRAGIN's S of each word of a sentence: its share of the attention that the words receive, times their number,
    times its entropy."""
    total = sum(attention) or 1.0
    return [a / total * len(attention) * h for a, h in zip(attention, entropies, strict=True)]


def spread(states: torch.Tensor) -> float:
    """SeaKR's U of samples: log det(Z J Zᵀ + α I) / K for their hidden states Z `[K, d]`, with J = I - 11ᵀ/d, which
    centres over the features."""
    z = states.double()
    centred = z - z.mean(dim=1, keepdim=True)
    gram = centred @ centred.T + RIDGE * torch.eye(len(z), dtype=torch.float64)
    return float(torch.logdet(gram)) / len(z)
