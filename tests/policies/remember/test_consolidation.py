"""Affinity and grouping: numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from waver.policies.remember.consolidation import affinity, groups

THRESHOLD = 0.85


@pytest.mark.parametrize(
    ("cosine", "days", "beta", "value"),
    [(0.9, 1.0, 0.7, 0.901451), (0.95, 2.0, 0.7, 0.910619), (0.6, 0.0, 0.7, 0.72), (0.9, 10.0, 0.5, 0.633940)],
)
def test_by_hand(cosine: float, days: float, beta: float, value: float) -> None:
    assert affinity(cosine, days, beta, 0.1) == pytest.approx(value, abs=1e-6)
    assert (affinity(cosine, days, beta, 0.1) >= THRESHOLD) == (value > 0.9)


def test_equal_facts_a_month_apart() -> None:
    assert affinity(1.0, 30.0) == pytest.approx(0.715, abs=1e-3)


def habit() -> np.ndarray:
    """Omega of one sentence that was said on seven days, five days apart."""
    days = np.arange(0.0, 35.0, 5.0)
    return affinity(np.ones((7, 7)), days[:, None] - days[None, :])


def test_a_habit_holds_together_by_single_links_only() -> None:
    omega = habit()
    assert list(groups(omega, [0], THRESHOLD, "single")) == [list(range(7))]
    (complete,) = groups(omega, [0], THRESHOLD, "complete")
    assert complete == [0, 1]
    assert omega[np.ix_(complete, complete)].min() >= THRESHOLD


def test_groups_do_not_overlap_and_are_no_single_ones() -> None:
    omega = np.eye(5)
    omega[0, 1] = omega[1, 0] = omega[1, 2] = omega[2, 1] = 0.9
    assert list(groups(omega, range(5), THRESHOLD)) == [[0, 1]]
    assert list(groups(omega, [3, 4], THRESHOLD)) == []
