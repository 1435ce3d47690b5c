"""Reciprocal rank fusion of several rankings (Cormack, Clarke and Büttcher, SIGIR 2009)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)
K = 60
"""The paper's constant: the larger, the less the first ranks count."""


def fuse(rankings: Sequence[Sequence[Item]], k: int = K) -> list[tuple[Item, float]]:
    """Rank items by the sum of `1 / (k + rank)` over the rankings, best first, divided by its largest possible value,
    so that 1 means first in all of them. Ties go to the item that comes first in the earlier ranking."""
    scores: dict[Item, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + (k + 1) / (k + rank)
    return sorted(((item, score / len(rankings)) for item, score in scores.items()), key=lambda pair: -pair[1])
