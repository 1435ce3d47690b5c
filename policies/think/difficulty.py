"""The difficulties of a question that DiffAdapt (arXiv 2510.19669) tells apart, in the order of its probes' outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, cast

Difficulty = Literal["easy", "normal", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "normal", "hard")


def usual_difficulty(recent: Sequence[str]) -> Difficulty | None:
    """Find the difficulty of at least half of the last questions, if there is one; normal where there were none."""
    if not recent:
        return "normal"
    ((most, count),) = Counter(recent).most_common(1)
    return cast(Difficulty, most) if 2 * count >= len(recent) else None
