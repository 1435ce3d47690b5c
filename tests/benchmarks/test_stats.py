"""The intervals, against scipy and against arithmetic that can be done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from waver.benchmarks.stats import (
    interpolate,
    middle,
    percentiles,
    resamples,
    typical,
    typical_of_groups,
)
from waver.stats import wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (0, 7), (7, 10), (481, 500), (500, 500), (60, 60)])
def test_wilson_is_the_score_interval(right: int, n: int) -> None:
    """Wilson (1927): the shares p for which |right/n - p| is z standard errors of p."""
    z = norm.ppf(0.975)
    for bound in wilson(right, n):
        assert (right / n - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n, abs=1e-9)
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    assert (low == 0) == (right == 0)
    assert (high == 1) == (right == n)


def test_the_bootstrap_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    first = (rng.random(300) < 0.9).astype(float)
    second = (rng.random(300) < 0.7).astype(float)
    theirs = bootstrap((first - second,), np.mean, method="percentile", n_resamples=5000, rng=2).confidence_interval
    ours = percentiles(resamples(300, count=5000) @ (first - second))
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_resamples_are_means_and_repeat() -> None:
    weights = resamples(20, seed=3, count=50)
    assert weights.shape == (50, 20)
    assert weights.sum(axis=1) == pytest.approx(np.ones(50))
    assert (weights == resamples(20, seed=3, count=50)).all()


def test_a_statistic_without_a_value_has_no_interval() -> None:
    assert all(map(math.isnan, percentiles(np.array([1.0, np.nan]))))


def test_interpolation_takes_points_in_any_order() -> None:
    xs, ys = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]), np.array([[10.0, 0.0, 4.0], [0.0, 10.0, 4.0]])
    assert interpolate(np.array([0.25, 0.75]), xs, ys) == pytest.approx([2.0, 7.0])


def test_the_middle_of_runs() -> None:
    assert middle([3.0, 1.0, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": 3.0, "runs": 3}


def test_runs_that_share_a_start_count_as_one() -> None:
    starts = [[start + 0.01 * run for run in range(20)] for start in range(5)]
    alone, shared = typical(np.concatenate(starts).tolist()), typical_of_groups(starts)
    assert (alone["median"], alone["runs"]) == (shared["median"], shared["runs"]) == (pytest.approx(2.095), 100)
    assert np.diff(shared["interval"]) > 1.9 * np.diff(alone["interval"])
    assert typical_of_groups([[1.0, 2.0, 9.0]])["interval"] == [2.0, 2.0]
