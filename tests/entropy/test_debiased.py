"""ADTE's formulas against figures worked out by hand and by independent code, and its effect on a biased classifier."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from waver.entropy import tsallis_entropy
from waver.entropy.debiased import (
    LabelBank,
    debiased_entropy,
    margin,
    orders,
    select_views,
    shannon,
    softmax,
    stationary_prior,
)

P = (0.7, 0.2, 0.1)
Q = (0.9, 0.5, 0.01)


def tsallis(p: tuple[float, ...], q: float) -> float:
    return float(tsallis_entropy(torch.tensor(p, dtype=torch.float64).log(), q))


def test_entropies() -> None:
    assert float(shannon(P)) == pytest.approx(0.80181855, abs=1e-8)
    known = {0.5: 1.20020278, 0.1: 1.78958806, 2: 0.46, 0.999: 0.80238755, 1.001: 0.80125025}
    assert {q: tsallis(P, q) for q in known} == pytest.approx(known, abs=1e-8)
    terms = [p**q / (1 - q) for p, q in zip(P, Q, strict=True)]
    assert terms == pytest.approx([7.25417847, 0.89442719, 0.98710830], abs=1e-8)
    assert float(debiased_entropy(P, Q)) == pytest.approx(9.13571396, abs=1e-8)
    assert float(debiased_entropy(P[::-1], Q)) == pytest.approx(3.15985725, abs=1e-8)
    assert float(debiased_entropy(P, 0.5)) == pytest.approx(3.20020278, abs=1e-8)
    assert float(debiased_entropy(P, 0.5)) == pytest.approx(tsallis(P, 0.5) + 2)
    with pytest.raises(ValueError, match="below 1"):
        debiased_entropy(P, 1.0)
    assert np.isfinite(debiased_entropy([1.0, 0.0, 0.0], Q))


def test_orders() -> None:
    assert orders([0.6, 0.3, 0.1]).tolist() == pytest.approx([0.9, 0.555701, 0.01], abs=1e-6)
    assert orders([0.5, 0.5]).tolist() == [0.01, 0.01]
    assert np.isfinite(orders([1.0, 0.0])).all()


def test_prior() -> None:
    m = np.array([(0.8, 0.15, 0.05), (0.3, 0.6, 0.1), (0.2, 0.3, 0.5)]).T
    found = stationary_prior(m)
    assert (found / found.sum()).tolist() == pytest.approx([0.576175, 0.305146, 0.118680], abs=1e-6)
    assert orders(found).tolist() == pytest.approx([0.9, 0.541956, 0.01], abs=1e-6)
    exact = stationary_prior(m, tolerance=1e-12)
    assert exact.tolist() == pytest.approx([0.576271, 0.305085, 0.118644], abs=1e-6)
    assert np.abs(stationary_prior(m, most=1) - m.mean(1)).max() < 1e-12


def test_rankings_flip() -> None:
    a, b = (0.70, 0.10, 0.10, 0.10), (0.62, 0.36, 0.01, 0.01)
    assert [float(shannon(p)) for p in (a, b)] == pytest.approx([0.940448, 0.756280], abs=1e-6)
    assert [tsallis(p, 0.1) for p in (a, b)] == pytest.approx([2.608829, 2.353462], abs=1e-6)
    assert [tsallis(p, 2) for p in (a, b)] == pytest.approx([0.4800, 0.4858], abs=1e-4)
    head, tail = (0.9, 0.05, 0.05), (0.05, 0.05, 0.9)
    assert debiased_entropy([head, tail], Q).tolist() == pytest.approx([10.522829, 2.130892], abs=1e-6)


def test_selection() -> None:
    p = np.array([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5], [0.8, 0.2]])
    found = select_views(p, [2.0, 1.0, 1.0, 0.5], 0.5)
    assert (found.kept, found.label) == ((3, 1), 1)
    assert found.mean.tolist() == pytest.approx([0.45, 0.55])
    assert select_views(p, np.zeros(4), 0.5).kept == (0, 1), "views that are level keep their order"
    assert len(select_views(np.ones((64, 2)), np.zeros(64)).kept) == 6
    assert len(select_views(p, np.zeros(4), 0.1).kept) == 1
    assert len(select_views(np.ones((100, 2)), np.zeros(100), 0.29).kept) == 29


def test_bank() -> None:
    bank = LabelBank(2, slots=2)
    assert margin([0.5, 3.0, 1.0]) == 2.0
    assert bank.add([1.0, 0.5]) is None, "its margin is below 1"
    assert bank.add([3.0, 1.0]) == (0, 0)
    assert bank.add([3.0, 0.0]) == (0, 1), "an empty slot first"
    assert bank.add([1.5, 0.0]) == (0, 0), "then the weakest, even by a weaker one"
    assert bank.margins.tolist() == [[1.5, 3.0], [-1.0, -1.0]]
    column = (softmax([1.5, 0.0]) + softmax([3.0, 0.0])) / 2
    assert bank.matrix().tolist() == [[pytest.approx(column[0]), 0.0], [pytest.approx(column[1]), 0.0]]
    assert bank.orders(warmup=4).tolist() == [0.1, 0.1]
    assert bank.orders(warmup=3).tolist() == pytest.approx([0.9, 0.01])
    other = LabelBank(2, slots=2)
    other.restore(bank.state())
    assert other.entered == 3
    assert other.prior().tolist() == bank.prior().tolist()


def test_rare_labels_are_found_under_a_bias() -> None:
    """A classifier of 50 labels whose logits hold the log of a prior l^-1, items of all labels alike, 64 views of which
    60 % are weak."""
    rng = np.random.default_rng(0)
    classes, items, views = 50, 800, 64
    prior = np.arange(1, classes + 1) ** -1.0
    bias = np.log(prior) - np.log(prior).mean()
    confusion = rng.normal(size=(classes, classes))
    truth = rng.integers(classes, size=items)
    logits = np.empty((items, views, classes), np.float32)
    for item, label in enumerate(truth):
        signal = 0.5 * confusion[label]
        signal[label] += 6
        good = rng.random(views) < 0.4
        scale = rng.uniform(0.6, 1.2, views) * np.where(good, 1.0, rng.uniform(0, 0.3, views))
        logits[item] = scale[:, None] * signal + bias + 2 * rng.normal(size=(views, classes))
    bank = LabelBank(classes)
    for row in logits.mean(1):
        bank.add(row)
    q = bank.orders()
    correlation = float(np.corrcoef(np.log(bank.prior()), np.log(prior))[0, 1])
    assert correlation > 0.95
    rare = truth >= classes - classes // 3

    def accuracy(measure: str) -> tuple[float, float]:
        right = np.empty(items, bool)
        for item, own in enumerate(logits):
            p = softmax(own)
            scores = {"shannon": shannon(p)}.get(measure)
            if scores is None:
                scores = debiased_entropy(p, {"adte": q, "tsallis": 0.1, "reversed": 0.91 - q}[measure])
            right[item] = select_views(p, scores).label == truth[item]
        return float(right.mean()), float(right[rare].mean())

    found = {each: accuracy(each) for each in ("shannon", "tsallis", "adte", "reversed")}
    assert found["adte"][0] > found["shannon"][0] + 0.05
    assert found["adte"][1] > found["shannon"][1] + 0.10
    assert found["tsallis"][0] >= found["shannon"][0]
    assert found["reversed"][0] < 0.5, "the sign of the paper's printed formula"
    assert math.isclose(float(softmax([1e4, 0.0])[0]), 1.0)
