"""The signal for rows with statistics of their own, and for those of a batch (whose numbers `test_hapo` checks)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waver.entropy.uncertainty import FLOOR, Statistics, uncertainty

# Apart by more than rounding: two that are all but equal have no difference to divide by.
entropies = st.lists(st.integers(1, 12_000), min_size=3, max_size=40, unique=True).map(lambda v: [i / 1000 for i in v])


@given(entropies)
def test_only_three_entropies_of_a_batch_matter(values: list[float]) -> None:
    """The lowest, the pivot and the highest: sigma cancels."""
    h = torch.tensor(values, dtype=torch.float64)
    low, pivot, high = (float(h.sort().values[i]) for i in (0, round(0.8 * (len(h) - 1)), -1))
    expected = Statistics.of(h).signal(h)
    assert expected.min() == pytest.approx(-1)
    if high > pivot:
        assert expected.max() == pytest.approx(1)
        ours = uncertainty(h, math.log(pivot), 1.0, 1 / math.log(high / pivot), 1 / math.log(pivot / low))
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_each_row_with_its_own() -> None:
    h = torch.tensor([0.0, 0.5, 2.0, 2.0, 9.0])
    pivot = torch.tensor([0.5, 0.5, 0.5, 4.0, 0.5])
    up, down = 1 / torch.log(3.0 / pivot).abs(), 1 / torch.log(pivot / 0.1)
    out = uncertainty(h, pivot.log(), 1.0, up, down)
    by_hand = [-1.0, 0.0, math.log(4) / math.log(6), -math.log(2) / math.log(40), 1.0]
    assert out.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert uncertainty(torch.zeros(1), math.log(FLOOR), 1.0, 1.0, 1.0).tolist() == [0.0]
