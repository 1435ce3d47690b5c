"""Conformal sets against reference numbers, and C-IP on a world whose predictor is too sure (arXiv 2507.03279)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from waver.entropy.conformal import (
    binary_entropy,
    bound,
    entropy,
    entropy_bound,
    expected_entropy,
    expected_size,
    members,
    nothing_to_gain,
    sizes,
    threshold,
)

TRUE = [0.92, 0.85, 0.80, 0.74, 0.66, 0.61, 0.52, 0.40, 0.33, 0.12]
P = np.array([[0.70, 0.15, 0.10, 0.05], [0.40, 0.35, 0.15, 0.10], [0.25] * 4, [0.05, 0.60, 0.30, 0.05]])
LABELS = [0, 1, 3, 0]


@pytest.mark.parametrize(("alpha", "tau", "covered"), [(0.1, 0.12, 1.0), (0.2, 0.33, 0.9), (0.3, 0.40, 0.8)])
def test_the_threshold_is_an_order_statistic(alpha: float, tau: float, covered: float) -> None:
    found = threshold(TRUE, alpha)
    assert found == tau
    assert np.mean(np.array(TRUE) >= found) == covered


def test_too_few_points_give_the_full_set() -> None:
    assert threshold(TRUE, 0.05) == -math.inf
    assert sizes(P, -math.inf).tolist() == [4, 4, 4, 4]
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold(TRUE, 1.0)


def test_sets() -> None:
    assert sizes(P, 0.2).tolist() == [1, 2, 4, 2]
    assert [bool(members(P, 0.2)[i, y]) for i, y in enumerate(LABELS)] == [True, True, True, False]
    assert expected_size(P, 0.2) == pytest.approx(1.169925, abs=1e-6)
    assert float(np.log2(sizes(P, 0.2)).mean()) == 1.0
    assert sizes(P, 0.9).tolist() == [4, 4, 4, 4], "an empty set tells nothing"
    assert bound(P, 0.9, [0, 1, 3, 0], 0.2, 0.2) == pytest.approx(0.721928 + 0.2 * 2, abs=1e-6)


def test_entropies_in_bits() -> None:
    assert entropy(P).tolist() == pytest.approx([1.319035, 1.801609, 2.0, 1.395462], abs=1e-5)
    assert expected_entropy(P) == pytest.approx(1.629027, abs=1e-5)
    assert binary_entropy(0.2) == pytest.approx(0.721928, abs=1e-6)


def test_bounds() -> None:
    assert bound(P, 0.2, LABELS, 0.2, 0.2) == pytest.approx(1.721928, abs=1e-6)
    assert bound(P, 0.2, LABELS, 0.2, 0.2 - 1 / 5) == pytest.approx(1.921928, abs=1e-6)
    assert entropy_bound(1.0, 4, 0.2, 100) == pytest.approx(1.382658, abs=1e-6)
    assert entropy_bound(float(sizes(P, 0.2).mean()), 4, 0.2, 100) == pytest.approx(2.330181, abs=1e-6)


def test_stop() -> None:
    scores = [1.52, 1.49, 1.55, 1.50]
    assert float(np.std(scores)) == pytest.approx(0.022913, abs=1e-6)
    assert not nothing_to_gain(scores, 0.01)
    assert nothing_to_gain(scores, 0.03)


CLASSES, ATTRIBUTES, LENGTH, CALIBRATION, ESTIMATES, ALPHA = 20, 40, 8, 100, 8, 0.1


class World:
    """Classes with yes-or-no attributes, and a predictor that is too sure and biased."""

    def __init__(self, rng: np.random.Generator, beta: float, nu: float) -> None:
        rates = rng.uniform(0.15, 0.85, ATTRIBUTES)
        self.signs = np.where(rng.random((CLASSES, ATTRIBUTES)) < rates, 1.0, -1.0)
        self.evidence = beta * self.signs + nu * rng.normal(size=(CLASSES, ATTRIBUTES))
        self.prior = rng.normal(size=CLASSES)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(-1, keepdims=True))

    def history(self, rng: np.random.Generator, truth: int, k: int) -> np.ndarray:
        asked = rng.choice(ATTRIBUTES, k, replace=False)
        return self.prior + self.evidence[:, asked] @ self.signs[truth, asked]

    def thresholds(self, rng: np.random.Generator) -> list[float]:
        out = [-math.inf]
        for k in range(1, LENGTH + 1):
            truths = rng.integers(CLASSES, size=CALIBRATION)
            f = self.predict(np.stack([self.history(rng, y, k) for y in truths]))
            out.append(threshold(f[np.arange(CALIBRATION), truths].tolist(), ALPHA))
        return out

    def coverage(self, rng: np.random.Generator, tau: list[float]) -> float:
        held = []
        for k in range(1, LENGTH + 1):
            truths = rng.integers(CLASSES, size=20)
            f = self.predict(np.stack([self.history(rng, y, k) for y in truths]))
            held += members(f, tau[k])[np.arange(20), truths].tolist()
        return float(np.mean(held))

    def play(self, rng: np.random.Generator, truth: int, way: str, tau: list[float]) -> list[bool]:
        """Tell whether the best guess is right, after 0 to LENGTH questions."""
        logits, left = self.prior.copy(), list(range(ATTRIBUTES))
        right = [int(logits.argmax()) == truth]
        for k in range(LENGTH):
            places = np.array(left)
            if way == "random":
                chosen = int(rng.choice(places))
            else:
                sampled = rng.integers(CLASSES, size=ESTIMATES)
                answers = self.signs[sampled][:, places]  # [estimates, questions]
                f = self.predict(logits + answers[..., None] * self.evidence.T[places])
                scores = np.log2(sizes(f, tau[k + 1]).mean(0)) if way == "c_ip" else entropy(f).mean(0)
                chosen = int(rng.choice(places[np.flatnonzero(scores <= scores.min() + 1e-12)]))
            left.remove(chosen)
            logits = logits + self.signs[truth, chosen] * self.evidence[:, chosen]
            right.append(int(logits.argmax()) == truth)
        return right


def test_fewer_questions_than_ip_where_the_predictor_is_too_sure() -> None:
    rng = np.random.default_rng(0)
    covered, right = [], {"random": [], "ip": [], "c_ip": []}
    for _ in range(20):
        world = World(rng, beta=1.5, nu=1.0)
        tau = world.thresholds(rng)
        covered.append(world.coverage(rng, tau))
        for way, own in right.items():
            own += [world.play(rng, truth, way, tau) for truth in range(CLASSES)]
    assert 0.87 <= np.mean(covered) <= 0.93, np.mean(covered)
    mean = {way: float(np.mean(own)) for way, own in right.items()}
    assert mean["c_ip"] >= mean["ip"] + 0.04, mean
    assert mean["c_ip"] >= mean["random"] + 0.03, mean
