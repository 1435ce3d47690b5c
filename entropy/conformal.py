"""Conformal prediction sets and their size as a measure of uncertainty (C-IP, arXiv 2507.03279).

A predictor gives each of K classes a probability `f_y`. The set `{y : f_y >= tau}` holds the true class with the
probability 1 - alpha where tau comes from calibration. Entropies and sizes are in bits here, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
LEAST = 1e-5
"""Smallest probability in an entropy."""
ROUNDING = 1e-9
"""Taken off (n + 1)(1 - alpha) before it is rounded up, which is often a whole number but for rounding."""


def threshold(true: Sequence[float], alpha: float) -> float:
    """Return tau from the probabilities of the true classes of n calibration points: minus the
    `ceil((n + 1)(1 - alpha))`-th smallest of their negatives; minus infinity (all classes are in the set) where there
    are too few points for alpha.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError("alpha lies between 0 and 1")
    rank = max(math.ceil((len(true) + 1) * (1 - alpha) - ROUNDING), 1)
    if rank > len(true):
        return -math.inf
    return float(np.sort(np.asarray(true, np.float64))[::-1][rank - 1])


def members(f: ArrayLike, tau: float) -> NDArray[np.bool_]:
    """Tell which classes are in the set: `[..., classes]`."""
    return np.asarray(np.asarray(f, np.float64) >= tau)


def sizes(f: ArrayLike, tau: float) -> Array:
    """Return the size of each set, `[...]`. An empty one counts as all classes: no class is as probable as true ones
    are, so that it tells nothing, and a question must not be chosen for emptying the set."""
    inside = members(f, tau)
    counts = inside.sum(-1)
    return np.asarray(np.where(counts > 0, counts, inside.shape[-1]), np.float64)


def expected_size(f: ArrayLike, tau: float) -> float:
    """Return log2 of the mean size over sampled answers `[answers, classes]`: the score that C-IP minimises (bits)."""
    return float(np.log2(sizes(f, tau).mean()))


def expected_entropy(f: ArrayLike) -> float:
    """Return the mean entropy over sampled answers `[answers, classes]`: the score that IP minimises (bits)."""
    return float(entropy(f).mean())


def entropy(f: ArrayLike) -> Array:
    """Compute entropies `[...]` of distributions `[..., classes]` (bits)."""
    p = np.maximum(np.asarray(f, np.float64), LEAST)
    return np.asarray(-(p * np.log2(p)).sum(-1), np.float64)


def binary_entropy(alpha: float) -> float:
    """Compute h_b(alpha) (bits)."""
    return -alpha * math.log2(alpha) - (1 - alpha) * math.log2(1 - alpha)


def bound(f: ArrayLike, tau: float, labels: Sequence[int], alpha: float, alpha_n: float) -> float:
    """Compute the finer score of the released code, which knows the sampled labels: `h_b(alpha) + (1 - alpha_n)
    mean log2 |C|` over answers whose set holds the label, `+ alpha mean log2 (K - |C|)` over the others."""
    table = np.asarray(f, np.float64)
    inside = members(table, tau)
    held = inside[np.arange(len(table)), np.asarray(labels)]
    size, classes = inside.sum(-1), table.shape[-1]
    covered = float(np.log2(size[held]).mean()) if held.any() else 0.0
    missed = float(np.log2(np.maximum(classes - size[~held], 1)).mean()) if (~held).any() else 0.0
    return binary_entropy(alpha) + (1 - alpha_n) * covered + alpha * missed


def entropy_bound(mean_size: float, classes: int, alpha: float, n: int) -> float:
    """Bound the conditional entropy of the class by the expected set size, from n calibration points (bits)."""
    alpha_n = alpha - 1 / (n + 1)
    rest = binary_entropy(alpha) + alpha * math.log2(classes) - (1 - alpha_n) * math.log2(1 - alpha)
    return rest + (1 - alpha_n) * math.log2(mean_size)


def nothing_to_gain(scores: Sequence[float], epsilon: float) -> bool:
    """Tell whether all questions are about as good: the population standard deviation of their scores is below
    epsilon."""
    return float(np.std(np.asarray(scores, np.float64))) < epsilon
