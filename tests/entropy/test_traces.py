"""Entropy traces against reference numbers: two agents, two rounds (arXiv 2602.04234)."""

from __future__ import annotations

import math

import pytest
import torch

from waver.entropy import shannon_entropy
from waver.entropy.traces import Call, Trace, features, statistics
from waver.entropy.truncation import top_p

RUN = Trace(
    (
        Call("a", 1, (0.1, 0.0, 1.2, 0.3)),
        Call("b", 1, (0.5, 0.5)),
        Call("a", 2, (0.0, 0.2, 0.1)),
        Call("b", 2, (0.4, 0.0)),
    )
)


def near(found: dict[str, float], **wanted: float) -> None:
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_one_call() -> None:
    near(
        statistics((0.1, 0.0, 1.2, 0.3)),
        total=1.6, max=1.2, mean=0.4, median=0.2, std=0.474342, variance=0.225, q1=0.075, q3=0.525,
    )  # fmt: skip
    near(statistics((0.0, 0.2, 0.1)), std=0.081650, q1=0.05, q3=0.15)
    near(statistics((0.4, 0.0)), q1=0.1, q3=0.3)


def test_the_whole_run_is_a_mean_over_its_calls() -> None:
    near(
        features(RUN),
        sample_max=0.575, sample_min=0.125, sample_mean=0.3, sample_median=0.25, sample_std=0.188998,
        sample_variance=0.067917, sample_q1=0.18125, sample_q3=0.36875, sample_total=3.3, sample_tokens=11,
        sample_per_token=0.3, sample_stability=0.370007, sample_per_agent=0.825, sample_agents=4,
        shape_cv=0.629993, shape_range=0.45, shape_iqr=0.1875, shape_bowley=0.266667, shape_tail=1.1,
    )  # fmt: skip


def test_rounds() -> None:
    near(
        features(RUN),
        round1_mean_of_mean=0.45, round1_std_of_mean=0.05, within1_spread=0.1, within1_cv=0.111111, round1_total=2.6,
        round1_tokens=6, round1_density=0.433333, within1_total_spread=0.6,
        round2_mean_of_mean=0.15, within2_spread=0.1, within2_cv=0.333333, round2_total=0.7, round2_tokens=5,
        round2_density=0.14, rounds_density_change=-0.293333, rounds_density_ratio=0.323077,
        rounds_density_slope=-0.293333, rounds_density_volatility=0.146667, rounds_tokens_change=-1,
        rounds_total_change=-1.9, cross_mean_difference=-0.3, cross_mean_sign=-1,
    )  # fmt: skip


def test_the_convention_is_after_temperature_and_truncation() -> None:
    raw = torch.tensor([[2.0, 1.5, 0.5, 0.0, -1.0]], dtype=torch.float64)
    cut = top_p(raw / 0.6, torch.tensor([0.95], dtype=torch.float64))
    found = [float(shannon_entropy(raw)), float(shannon_entropy(raw / 0.6)), float(cut.entropy)]
    assert found == pytest.approx([1.225626, 0.905900, 0.790617], abs=1e-6)
    assert int(cut.kept) == 3


def test_what_is_missing_is_nan_and_a_zero_denominator_gives_zero() -> None:
    once = features(Trace((Call("solver", 1, (0.0, 0.0)),)))
    assert list(once) == list(features(RUN)), "always the same names in the same order"
    assert once["shape_cv"] == once["round1_density"] == once["within1_cv"] == 0
    assert all(math.isnan(once[name]) for name in ("round2_total", "rounds_tokens_change", "cross_mean_sign"))
    assert all(math.isnan(once[name]) for name in ("answer_mean", "alone_ratio", "round2_max_of_q1"))
    assert once["round1_std_of_mean"] == 0
    with pytest.raises(ValueError, match="without a call"):
        features(Trace(()))


def test_the_relation_to_a_single_solver() -> None:
    alone = Trace((Call("solver", 1, (0.5, 0.5, 1.0)),), answer=(1.0,))
    told = features(Trace(RUN.calls, answer=(0.5, 0.0)), alone)
    near(
        told,
        alone_total=2.0, alone_tokens=3, alone_ratio=1.65, alone_reduction=-0.65, alone_change=1.3,
        alone_per_token_ratio=0.45, alone_answer_mean=1.0, alone_answer_ratio=0.25, alone_answer_difference=-0.75,
        answer_count=2, answer_max=0.5,
    )  # fmt: skip
    assert sum(name.startswith("alone_") for name in told) == 17
