"""Make one ranking of several: by a weighted sum of scores (Bruch, Gai and Ingber, arXiv 2210.11934), or of reciprocal
ranks (Cormack, Clarke and Büttcher, SIGIR 2009)."""

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


def blend(
    rankings: Sequence[Sequence[tuple[Item, float]]], weights: Sequence[float] | None = None
) -> list[tuple[Item, float]]:
    """Rank items by the weighted sum of their scores, each divided by the best of its ranking, best first: 1 means best
    in all of them. A score below 0 counts as 0, as does an item that a ranking lacks. Ties go to the item that comes
    first in the earlier ranking.

    Args:
        rankings: items with scores, the best first.
        weights: how much each ranking counts; all the same if None.
    """
    weights = weights or [1.0] * len(rankings)
    scores: dict[Item, float] = {}
    for weight, ranking in zip(weights, rankings, strict=True):
        best = max((score for _, score in ranking), default=0.0)
        for item, score in ranking:
            share = max(score, 0.0) / best if best > 0 else 0.0
            scores[item] = scores.get(item, 0.0) + weight * share
    return sorted(((item, score / sum(weights)) for item, score in scores.items()), key=lambda pair: -pair[1])
