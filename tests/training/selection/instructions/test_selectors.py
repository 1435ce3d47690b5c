"""Selectors on a matrix that can be followed by hand, and on tasks whose helpful examples are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.training.selection.instructions.linear import by_gradients, by_inputs, trained_loss, world
from waver.training.selection.instructions import neighbours, similarity
from waver.training.selection.instructions.quantiles import slices
from waver.training.selection.instructions.run import selector_named, spearman
from waver.training.selection.instructions.selectors import (
    SELECTORS,
    Ordered,
    at_random,
    doubly_greedy,
    round_robin,
    softmax_masses,
    uot,
    uot_masses,
)
from waver.training.selection.instructions.similarity import Matrix, Similarity

HAND = Matrix(np.array([[0.62, 0.60, 0.10, 0.61], [0.10, 0.58, 0.59, 0.05]]))


def order(select: Callable[[Similarity, int], Ordered], budget: int = 4) -> list[int]:
    return select(HAND, budget).places.tolist()


def test_greedy_orders() -> None:
    assert order(round_robin) == [0, 2, 3, 1]
    assert order(doubly_greedy) == [0, 3, 1, 2]
    assert round_robin(HAND, 4).scores.tolist() == [0.62, 0.59, 0.61, 0.58]


def test_transport() -> None:
    assert uot_masses(HAND) == pytest.approx([0.252906, 0.281825, 0.311113, 0.154156], abs=1e-6)
    assert order(uot) == [2, 1, 0, 3]
    assert softmax_masses(HAND) == pytest.approx([0.253240, 0.281932, 0.311230, 0.153598], abs=1e-6)


def test_uniform_neighbours() -> None:
    assert neighbours.uniform_masses(HAND, alpha=0.7, scale=1) == pytest.approx([0.25] * 4)
    assert neighbours.uniform_masses(HAND, alpha=0.5, scale=1) == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6])
    assert neighbours.uniform_count(np.array([[0.1]])) == 1


@pytest.mark.parametrize(
    ("alpha", "scale", "masses", "s", "places"),
    [(0.7, 1, [0.125, 0.375, 0.25, 0.25], 2.0, [1, 2, 3, 0]), (0.01, 5, [0.2, 0.4, 0.2, 0.2], 2.5, [1, 0, 2, 3])],
)
def test_neighbours_by_density(alpha: float, scale: float, masses: list[float], s: float, places: list[int]) -> None:
    own, values = HAND.nearest(4)
    density = np.array([2.0, 1.0, 1.0, 1.0])[own]
    shares, reached = neighbours.allocate(1 - values, density, alpha, scale)
    found = np.zeros(4)
    np.add.at(found, own.ravel(), shares.ravel())
    assert found == pytest.approx(masses)
    assert reached == pytest.approx(s)
    assert np.argsort(-found.round(9), kind="stable").tolist() == places


def test_densities_count_near_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    assert neighbours.kernel(np.array([1, 0.9, 0.7, 0.2])) == pytest.approx([1, 0.644444, 0, 0], abs=1e-6)
    between = np.eye(20)
    between[:3, :3] = 1.0
    found = Matrix(np.zeros((1, 20)), between)
    assert neighbours.densities(found, np.arange(20)).tolist() == [2.0] * 3 + [1.0] * 17  # a tenth of 20 are 2
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    assert neighbours.densities(found, np.arange(20)).tolist() == [2.0] * 3 + [1.0] * 17
    with pytest.raises(ValueError, match="between each other"):
        HAND.between(np.array([0]), np.array([1]))


@pytest.fixture(scope="module")
def vectors() -> Similarity:
    rng = np.random.default_rng(0)
    queries, pool = rng.normal(size=(5, 2, 8)), rng.normal(size=(300, 2, 8))
    pool[1::3] = pool[::3]  # near duplicates, and ties
    queries, pool = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (queries, pool))
    return Similarity(queries, pool, (0.7, 0.3))


@pytest.mark.parametrize("name", [*SELECTORS, "random"])
def test_every_selector_orders_the_pool(name: str, vectors: Similarity, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller budget is the beginning of a larger one, and blocks change nothing but roundings."""
    select = selector_named(name, 0)
    whole = select(vectors, 300)
    assert sorted(whole.places.tolist()) == list(range(300))
    assert select(vectors, 40).places.tolist() == whole.places[:40].tolist()
    monkeypatch.setattr(similarity, "BLOCK", 37)
    monkeypatch.setattr(neighbours, "BLOCK", 11)
    assert select(vectors, 300).scores == pytest.approx(whole.scores)


def test_similarities_are_weighted_cosines(vectors: Similarity) -> None:
    whole = np.concatenate([block for _, block in vectors.blocks()], axis=1)
    wanted = sum(w * vectors.queries[:, e] @ vectors.pool[:, e].T for e, w in enumerate((0.7, 0.3)))
    assert whole == pytest.approx(wanted)
    places, values = vectors.nearest(10)
    assert np.take_along_axis(whole, places, 1) == pytest.approx(values)
    assert values == pytest.approx(np.sort(whole)[:, :-11:-1])


def test_ranks_correlate() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 1, 2, 2]) == pytest.approx(0.894427, abs=1e-6)
    assert np.isnan(spearman([1, 2], [1, 1]))
    assert slices(range(10), 3, 2) == [[0, 1], [4, 5], [7, 8]]
    with pytest.raises(ValueError, match="cannot be cut into 11"):
        slices(range(10), 11, 2)


def test_gradients_find_the_examples_of_a_task() -> None:
    """By gradients the loss is far below random examples', and rises from slice to slice; inputs say little."""
    of = world(0)
    less, embed = by_gradients(of, 0), by_inputs(of)
    random = trained_loss(of, at_random(0)(less, 200).places, 0)
    assert trained_loss(of, round_robin(less, 200).places, 0) < 0.6 * random
    assert trained_loss(of, uot(less, 200).places, 0) < 0.6 * random
    assert trained_loss(of, round_robin(embed, 200).places, 0) > 0.75 * random
    correlation = {}
    for name, found in (("less", less), ("embed", embed)):
        parts = slices(round_robin(found, 4000).places.tolist(), 10, 200)
        correlation[name] = spearman(range(10), [trained_loss(of, np.array(part), 0) for part in parts])
    assert correlation["less"] > 0.9
    assert correlation["embed"] < 0.75
