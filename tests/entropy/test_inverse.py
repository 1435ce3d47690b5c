"""Inverse entropy against reference numbers, its closed form, and its behaviour (arXiv 2506.09684)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from waver.entropy.agreement import clusters, semantic_entropy
from waver.entropy.inverse import coupled, inverse, temperature_score
from waver.stats import auroc

X = [[1, 0.9, 0.8], [0.9, 1, 0.7], [0.8, 0.7, 1]]


def test_two_states() -> None:
    made = coupled([[1, 0.8], [0.8, 1]], [[1, 0.5], [0.5, 1]])
    assert made.diagonal.tolist() == pytest.approx([0.518519] * 2, abs=1e-6)
    assert made.inverse_entropy == pytest.approx(0.681105, abs=1e-6)


def test_constant_answers() -> None:
    made = coupled(X, np.ones((3, 3)))
    assert made.diagonal.tolist() == pytest.approx([0.345508, 0.332650, 0.321842], abs=1e-6)
    found = [made.inverse_entropy, made.forward_entropy, made.distance]
    assert found == pytest.approx([1.098192, 1.098612, 0.008116], abs=1e-6)


def test_one_answer_apart() -> None:
    made = coupled(X, [[1, 1, 0.2], [1, 1, 0.2], [0.2, 0.2, 1]])
    assert made.diagonal.tolist() == pytest.approx([0.354784, 0.351795, 0.366504], abs=1e-6)
    assert made.outputs.tolist() == pytest.approx([0.350649, 0.350649, 0.298701], abs=1e-6)
    assert made.inputs.tolist() == pytest.approx([0.347659, 0.337090, 0.315251], abs=1e-6)
    found = [made.inverse_entropy, made.forward_entropy, made.largest_forward, made.distance]
    assert found == pytest.approx([1.103043, 1.102906, 0.365946, 0.011033], abs=1e-6)
    assert made.distance == pytest.approx(wasserstein_distance(made.inputs, made.outputs))
    apart = coupled(X, np.where(np.eye(3) > 0, 1, 0.2))
    assert [apart.inverse_entropy, apart.forward_entropy] == pytest.approx([1.103503, 1.102821], abs=1e-6)


@pytest.mark.parametrize(
    ("e_y", "d", "h"),
    [(0, 0.1, 2.302585), (0.1, 0.100241, 2.305724), (0.5, 0.101996, 2.328381), (1, 0.121951, 2.566017)],
)
def test_the_closed_form(e_y: float, d: float, h: float) -> None:
    n, e_x = 9, 0.2
    even = [np.where(np.eye(n + 1) > 0, 1, 1 - e) for e in (e_x, e_y)]
    made = coupled(*even)
    closed = (1 + n - n * e_x - n * e_y + n * e_x * e_y) / ((n + 1 - n * e_x) * (n + 1 - n * e_y))
    assert made.diagonal == pytest.approx(np.full(n + 1, closed), abs=1e-12)
    assert made.inverse_entropy == pytest.approx(-(n + 1) * closed * np.log(closed), abs=1e-9)
    assert [closed, made.inverse_entropy] == pytest.approx([d, h], abs=1e-6)


def test_tsu() -> None:
    rows = np.array([(0.2, 0.5, 0.9), (0.3, 0.3, 0.8), (0.6, 0.5, 0.7), (0.1, 0.2, 0.15)])
    pairs = [temperature_score(rows[:, pair]) for pair in ([0, 1], [1, 2], [0, 2])]
    assert [*pairs, temperature_score(rows)] == [0.5, 0.75, 1.0, 0.25]


STATES, ANSWERS, REPLICATIONS, WIDTH = 10, 6, 5, 32


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def alike(v: np.ndarray) -> np.ndarray:
    return (1 + v @ v.T) / 2


class Question:
    """A question that a model knows with some probability; elsewhere its answers depend on the wording."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.knows = rng.uniform()
        self.meanings = unit(rng.normal(size=(ANSWERS, WIDTH)))
        first = unit(rng.normal(size=WIDTH))
        others = unit(first + 0.35 * unit(rng.normal(size=(STATES - 1, WIDTH))))
        self.inputs = alike(np.vstack([first, others]))
        self.guess = rng.dirichlet([0.4] * ANSWERS)

    def distributions(self, rng: np.random.Generator, known: float) -> np.ndarray:
        own = np.stack([self.guess if rng.random() < 0.5 else rng.dirichlet([0.4] * ANSWERS) for _ in range(STATES)])
        return known * np.eye(ANSWERS)[0] + (1 - known) * own

    def outputs(self, rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
        said = np.concatenate([rng.choice(ANSWERS, REPLICATIONS, p=row) for row in p])
        noise = unit(rng.normal(size=(len(said), WIDTH)))
        return alike(unit(self.meanings[said] + 0.15 * noise))


def test_wrong_answers_are_found_better_than_by_one_wording_alone() -> None:
    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = {"inverse": [], "single": [], "semantic": []}
    wrong = []
    for _ in range(300):
        question = Question(rng)
        p = question.distributions(rng, question.knows)
        outputs = question.outputs(rng, p)
        found = inverse(question.inputs, outputs, REPLICATIONS, rng)
        wrong.append(rng.choice(ANSWERS, p=p[0]) != 0)
        scores["inverse"].append(found.entropy)
        scores["single"].append(found.single)
        groups = clusters(outputs[:REPLICATIONS, :REPLICATIONS], 0.9)
        scores["semantic"].append(semantic_entropy(groups))
    found = {name: auroc(own, wrong) for name, own in scores.items()}
    assert found["inverse"] > found["single"] > 0.5, found
    assert found["inverse"] > found["semantic"] + 0.03, found
    assert found["inverse"] == pytest.approx(0.748, abs=0.06)


def test_uncertainty_rises_with_the_temperature() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(150):
        question, row = Question(rng), []
        for heat in (0.25, 0.5, 0.75, 1.0):
            p = question.distributions(rng, 1 - heat * (1 - question.knows))
            row.append(inverse(question.inputs, question.outputs(rng, p), REPLICATIONS, rng).entropy)
        rows.append(row)
    table = np.array(rows)
    pairs = [temperature_score(table[:, i : i + 2]) for i in range(3)]
    assert min(pairs) > 0.7, pairs
    assert temperature_score(table[:, [0, 3]]) > 0.9
    assert temperature_score(table) > 0.4
