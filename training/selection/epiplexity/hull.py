"""Read S and H at a budget of compute off many runs: the lower convex hull of code length over compute (arXiv
2601.03220, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

TOLERANCE = 0.01


@dataclass(frozen=True)
class Point:
    """One logged moment of a run: FLOPs so far, S and H in bits."""

    run: str
    compute: float
    s: float
    h: float

    @property
    def total(self) -> float:
        return self.s + self.h


def lower_hull(points: Sequence[Point], tolerance: float = TOLERANCE) -> list[Point]:
    """Return the points on the lower convex hull of `total` over `compute`, by rising compute.

    A middle point goes when the cross product is at most `tolerance * |dx| * |dy|`; one more than `tolerance` (as a
    share) above the least total at less compute goes first.
    """
    kept: list[Point] = []
    least = float("inf")
    for point in sorted(points, key=lambda each: (each.compute, each.total)):
        if point.total > least * (1 + tolerance):
            continue
        least = min(least, point.total)
        while len(kept) > 1 and _above(kept[-2], kept[-1], point, tolerance):
            kept.pop()
        kept.append(point)
    return kept


def _above(a: Point, b: Point, c: Point, tolerance: float) -> bool:
    """Tell whether `b` lies on or above the line from `a` to `c`."""
    dx, dy = c.compute - a.compute, c.total - a.total
    cross = (b.compute - a.compute) * dy - (b.total - a.total) * dx
    return cross <= tolerance * abs(dx) * abs(dy)


def one_each(hull: Sequence[Point]) -> list[Point]:
    """Keep one point of each run: the one whose compute is nearest to the median of that run's points on the hull."""
    kept = []
    for run in dict.fromkeys(point.run for point in hull):
        own = [point for point in hull if point.run == run]
        middle = median(point.compute for point in own)
        kept.append(min(own, key=lambda each: abs(each.compute - middle)))
    return kept


def at_budget(points: Sequence[Point], budget: float) -> Point:
    """Return the point of least total whose compute is within the budget.

    Raises:
        ValueError: none is.
    """
    within = [point for point in points if point.compute <= budget]
    if not within:
        raise ValueError(f"no run stays within {budget:.3g} FLOPs: the least is {min(p.compute for p in points):.3g}")
    return min(within, key=lambda each: each.total)
