"""Compute intervals of shares and of their differences, and the AUROC of a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Z = NormalDist().inv_cdf(0.975)
"""Standard errors on either side of a 95 % interval."""


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share `right / n`."""
    share, width = right / n, Z * Z / n
    middle, half = share + width / 2, Z * math.sqrt(share * (1 - share) / n + width / n / 4)
    # Within rounding, shares of 0 and 1 are their own bounds.
    return min(max((middle - half) / (1 + width), 0.0), share), max(min((middle + half) / (1 + width), 1.0), share)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """Return the interval of the difference of two shares of right answers to the same questions: Newcombe's score
    interval for paired data (Statistics in Medicine 17, 2635, method 10), which has a width at 0 and 1 too."""
    n = len(first)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    one, other = sum(first), sum(second)
    neither = n - one - other + both
    lost, gained = other - both, one - both
    scale = math.sqrt(one * (n - one) * other * (n - other))
    product = float(both * neither - gained * lost)
    if product > n / 2:
        product -= n / 2  # the method's continuity correction
    elif product > 0:
        product = 0.0
    correlation = product / scale if scale else 0.0
    (low, high), (below, above) = wilson(one, n), wilson(other, n)
    p, q = one / n, other / n

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0))

    return p - q - reach(p - low, above - q), p - q + reach(high - p, q - below)


def auroc(scores: Sequence[float], wrong: Sequence[bool]) -> float | None:
    """Return the probability that a wrong answer scores higher than a right one, ties counted half.

    None where all answers are right, or all wrong.
    """
    bad = np.array([score for score, each in zip(scores, wrong, strict=True) if each])
    good = np.sort([score for score, each in zip(scores, wrong, strict=True) if not each])
    if not len(bad) or not len(good):
        return None
    below, upto = np.searchsorted(good, bad, "left"), np.searchsorted(good, bad, "right")
    return float((below + upto).mean() / 2 / len(good))
