"""Intervals and areas by hand."""

from __future__ import annotations

import pytest

from waver.stats import auroc, wilson


def test_numbers_by_hand() -> None:
    assert wilson(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert auroc([1, 2, 2, 3], [False, True, False, True]) == pytest.approx(3.5 / 4)
