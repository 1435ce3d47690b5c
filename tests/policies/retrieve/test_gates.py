"""Gate scores, against reference figures of L-RAG (arXiv 2601.06551); and the calibration of thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waver.entropy import shannon_entropy
from waver.policies.retrieve.calibration import Latency, budget, curve, within
from waver.policies.retrieve.gates.draft import pooled
from waver.policies.retrieve.gates.dragin import weighted_entropies
from waver.policies.retrieve.gates.margin import closeness
from waver.policies.retrieve.gates.seakr import spread
from waver.policies.retrieve.gates.targ import disagreement

DRAFT = [0.9404480, 1.3862944, 0.1677005]


def test_a_draft_of_three_tokens() -> None:
    rows = [(0.7, 0.1, 0.1, 0.1), (0.25,) * 4, (0.97, 0.01, 0.01, 0.01)]
    entropies = shannon_entropy(torch.tensor(rows, dtype=torch.float64).log()).tolist()
    assert entropies == pytest.approx(DRAFT, abs=5e-8)
    assert pooled(entropies, "mean", 1) == pytest.approx(0.8314810, abs=5e-8)
    assert pooled(entropies, "first", 1) == pytest.approx(0.9404480, abs=5e-8)
    assert pooled(entropies, "max", 1) == pytest.approx(1.3862944, abs=5e-8)
    assert pooled(entropies, "prefix_k", 2) == pytest.approx((DRAFT[0] + DRAFT[1]) / 2, abs=5e-8)
    assert pooled(entropies, "prefix_k", 9) == pooled(entropies, "mean", 1)


def test_targ() -> None:
    gaps = (2, 0.5, 0)
    assert sum(map(closeness, gaps)) / 3 == pytest.approx(0.5806220, abs=5e-8)
    assert disagreement([[1, 2], [1, 2]]) == 0
    assert disagreement([[1, 2], [1, 3]]) == pytest.approx(0.25)
    assert disagreement([[1], [1, 3]]) == pytest.approx(0.25), "who has ended says something else"
    assert disagreement([[], [], []]) == 0


def test_dragin() -> None:
    assert weighted_entropies((0.1, 0.4, 0.2, 0.3), (0.5, 1.2, 0.1, 0.8)) == pytest.approx([0.2, 1.92, 0.08, 0.96])
    assert weighted_entropies((0.0, 0.0), (1.0, 1.0)) == [0.0, 0.0]


def test_seakr() -> None:
    rows = torch.tensor([[1, 0, 2, -1], [1, 0.1, 2, -1], [0, 1, -1, 2]], dtype=torch.float64)
    assert spread(rows) == pytest.approx(-3.1246455, abs=5e-8)
    assert spread(rows[:1].repeat(3, 1)) == pytest.approx(-3.7024646, abs=5e-8)
    assert spread(torch.arange(1.0, 9.0).repeat(20, 1)) == pytest.approx(-6.2256974, abs=5e-8)


def test_a_budget_of_retrievals() -> None:
    scores = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0, 2.4, 3.0)
    for rate, threshold in ((0.92, 0.344), (0.74, 0.668), (0.5, 1.1)):
        assert budget(scores, rate) == pytest.approx(threshold)
    assert budget(scores, 0.3, above=False) == pytest.approx(np.quantile(scores, 0.3))


def test_latencies() -> None:
    cases = {
        (0.92, 1000): (1053.6, 1080, 670),
        (0.74, 500): (489.2, 580, 150.76923),
        (0.74, 800): (711.2, 880, 150.76923),
        (0.5, 100): (150, 180, 40),
    }
    for (rate, retrieval), (gated, always, break_even) in cases.items():
        latency = Latency(retrieval, first=60, second=80)
        assert latency.gated(rate) == pytest.approx(gated)
        assert latency.always == always
        assert latency.break_even(rate) == pytest.approx(break_even)
    assert math.isinf(Latency(1, 1, 1).break_even(1.0))


def test_a_gate_that_fires_pays_for_its_draft_only() -> None:
    """Measured: never 56 ms, always 79 ms with 10 ms a lookup, a gate at 23.5 % 66 ms. It pays, where the formula that
    charges a whole first answer asks for 27 ms a lookup."""
    latency = Latency(retrieval=10, first=56, second=69, draft=21)
    assert latency.gated(0.235) == pytest.approx(21 + 0.765 * 35 + 0.235 * 79)
    assert latency.gated(0.235) < latency.always
    even = latency.break_even(0.235)
    assert even < 10
    assert Latency(even, 56, 69, 21).gated(0.235) == pytest.approx(Latency(even, 56, 69, 21).always)
    assert Latency(10, 56, 69).break_even(0.235) > 4.2, "without a draft of its own it is the formula of before"


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9, 1.3]), st.booleans(), st.booleans()), min_size=1, max_size=30
    ),
    st.booleans(),
)
def test_the_curve_says_what_its_thresholds_do(questions: list[tuple[float, bool, bool]], above: bool) -> None:
    scores, first, second = zip(*questions, strict=True)
    points = curve(scores, first, second, above)
    for point in points:
        fired = [(u > point.threshold) == above for u in scores]
        assert point.rate == pytest.approx(sum(fired) / len(scores))
        right = [b if f else a for f, a, b in zip(fired, first, second, strict=True)]
        assert point.accuracy == pytest.approx(sum(right) / len(scores))
    assert (points[0].rate, points[-1].rate) == (0, 1)
    chosen = within(points, 0.01)
    assert chosen.accuracy >= points[-1].accuracy - 0.01 - 1e-9
    assert all(p.accuracy < points[-1].accuracy - 0.01 for p in points if p.rate < chosen.rate)
