"""Reciprocal rank fusion of several rankings (Cormack, Clarke and Büttcher, SIGIR 2009), with weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)
K = 60
"""The paper's constant: the larger, the less the first ranks count."""


def fuse(
    rankings: Sequence[Sequence[Item]], weights: Sequence[float] | None = None, k: int = K
) -> list[tuple[Item, float]]:
    """Rank items by the weighted sum of `1 / (k + rank)` over the rankings, best first, divided by its largest possible
    value, so that 1 means first in all of them. Ties go to the item that comes first in the earlier ranking.

    Args:
        weights: how much each ranking counts; all the same if None.
    """
    weights = weights or [1.0] * len(rankings)
    scores: dict[Item, float] = {}
    for weight, ranking in zip(weights, rankings, strict=True):
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + weight * (k + 1) / (k + rank)
    return sorted(((item, score / sum(weights)) for item, score in scores.items()), key=lambda pair: -pair[1])
