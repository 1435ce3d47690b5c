"""Links by a mixture, and walks over them: numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from waver.retrieval.memory.graph import accepted, neighbours, walk

LINKS = np.array([[0, 1], [1, 2], [0, 3]])
RESTART = np.array([0.7, 0.3, 0, 0, 0])


@pytest.mark.parametrize(
    ("damping", "expected"),
    [(0.1, [0.648439, 0.303942, 0.015197, 0.032422, 0]), (0.5, [0.488889, 0.311111, 0.077778, 0.122222, 0])],
)
def test_walks_by_hand(damping: float, expected: list[float]) -> None:
    found = walk(LINKS, RESTART, damping)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.sum() == pytest.approx(1.0)


def test_a_node_without_links_sends_its_share_back() -> None:
    restart = np.array([0.5, 0, 0, 0, 0.5])
    found = walk(LINKS, restart, 0.5)
    assert found.sum() == pytest.approx(1.0)
    # x4 = d * x4 * v4 + (1 - d) * v4, as nothing else leads there
    assert found[4] == pytest.approx(0.25 / (1 - 0.25))
    assert walk(np.zeros((0, 2), np.int64), restart, 0.5) == pytest.approx(restart)


def test_a_link_made_from_both_sides_counts_once() -> None:
    assert walk(np.concatenate([LINKS, LINKS[:, ::-1]]), RESTART, 0.5) == pytest.approx(walk(LINKS, RESTART, 0.5))


def test_the_upper_part_of_the_mixture_is_accepted() -> None:
    similarities = np.array([0.82, 0.79, 0.76, 0.31, 0.28, 0.27, 0.22, 0.18])
    assert accepted(similarities).tolist() == [True] * 3 + [False] * 5
    assert accepted(similarities, wide=True).tolist() == [True] * 3 + [False] * 5
    assert accepted(similarities[::-1]).tolist() == [False] * 5 + [True] * 3


def test_few_and_equal_similarities_are_all_accepted() -> None:
    for same in (np.array([]), np.array([0.1]), np.array([0.9, 0.1]), np.full(9, 0.4)):
        assert accepted(same).all()


def test_one_group_is_cut_in_two_unless_it_is_guarded() -> None:
    one = np.random.default_rng(0).normal(0.5, 0.1, 30)
    assert 1 < accepted(one).sum() < 30
    assert np.flatnonzero(accepted(one, wide=True)).tolist() == [int(np.argmax(one))]


def test_only_the_most_similar_ones_are_candidates() -> None:
    others = np.eye(4)
    vector = np.array([0.9, 0.8, 0.1, 0.0])
    assert neighbours(vector, others) == [0, 1]
    assert neighbours(vector, others, candidates=1) == [0]
