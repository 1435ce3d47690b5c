"""Compute 95 % intervals for what was measured on a sample of questions, and compare two ways on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000

Array = NDArray[np.float64]


def resamples(n: int, seed: int = 0, count: int = RESAMPLES) -> Array:
    """Return weights `[count, n]` of bootstrap samples of `n` questions: a weighted mean is the mean of a resample.

    The same weights for every method make the bootstrap a paired one.
    """
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=count)
    return counts / n


def percentiles(values: Array) -> tuple[float, float]:
    """Return the bootstrap's percentile interval; NaN where a resample has no value."""
    if np.isnan(values).any():
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interpolate(x: Array, xs: Array, ys: Array) -> Array:
    """Return row by row, the value at `x` `[rows]` of the line through (`xs`, `ys`), both `[rows, points]` in any
    order."""
    order = np.argsort(xs, axis=1)
    xs, ys = np.take_along_axis(xs, order, 1), np.take_along_axis(ys, order, 1)
    return np.array([np.interp(*row) for row in zip(x, xs, ys, strict=True)])


def middle(values: Sequence[float]) -> dict[str, float | int]:
    """Return median and spread of repeated runs."""
    median = float(np.median(values))
    return {"median": median, "lowest": float(min(values)), "highest": float(max(values)), "runs": len(values)}


def typical(values: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Return the median of repeated runs, and its bootstrap interval."""
    return typical_of_groups([[value] for value in values], seed)


def typical_of_groups(groups: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """Return the same where the runs of a group share something, as a server that was started once: the bootstrap draws
    whole groups."""
    drawn = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    medians = [np.median(np.concatenate([groups[each] for each in row])) for row in drawn]
    every = np.concatenate(list(groups))
    return {"median": float(np.median(every)), "interval": list(percentiles(np.array(medians))), "runs": len(every)}


def mean_interval(values: Array) -> tuple[float, float]:
    """Return Student's interval of a mean, for few runs; the mean itself if they are all alike."""
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the p-value of McNemar's exact test: how likely two ways that are right equally often would differ at
    least so much on the questions where just one of them is right."""
    gained = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    n, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number (Holm): all that are below a level may be believed at once
    with that level."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        found[i] = highest
    return found
