"""The novelty of a window: numbers worked out by hand, and a conversation of facts among filler."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policies.remember import toy
from waver.policies.remember.novelty import (
    cosine,
    entities,
    keeps_as_many,
    new_entities,
    novelty,
    unseen_detail,
)

THRESHOLD = 0.35


@pytest.mark.parametrize(
    ("new", "cos", "value", "kept"), [(0, 0.95, 0.025, False), (4, 0.60, 0.4, True), (1, 0.45, 0.325, False),
                                      (2, 0.50, 0.35, True)],
)  # fmt: skip
def test_by_hand(new: int, cos: float, value: float, kept: bool) -> None:
    found = novelty(new, 10, cos)
    assert found == pytest.approx(value, abs=1e-12)
    assert (found >= THRESHOLD) == kept


def test_it_divides_by_the_turns_of_a_window() -> None:
    assert novelty(1, 10, 0.95) == pytest.approx(0.075)
    assert novelty(1, 1, 0.95) == pytest.approx(0.525)  # what it would be without


def area(scores: list[float], labels: list[bool]) -> float:
    """Area under the ROC curve."""
    good = [s for s, label in zip(scores, labels, strict=True) if label]
    bad = [s for s, label in zip(scores, labels, strict=True) if not label]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in good for b in bad]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_windows_with_facts_are_told_from_filler(seed: int) -> None:
    windows, informative = toy.world(seed)
    scores, names, directions = [], [], []
    for i, window in enumerate(windows):
        said, before = (" ".join(part) for part in (window, [turn for w in windows[max(i - 3, 0) : i] for turn in w]))
        cos = float(toy.encode(said) @ toy.encode(before))
        new = len(toy.entities(said) - toy.entities(before))
        scores.append(novelty(new, toy.TURNS, cos))
        names.append(novelty(new, toy.TURNS, 1.0, alpha=1.0))
        directions.append(novelty(0, toy.TURNS, cos, alpha=0.0))
    assert area(scores, informative) > 0.95
    assert area(names, informative) == pytest.approx(1.0)
    assert area(directions, informative) < 0.9
    kept = [score >= THRESHOLD for score in scores]
    facts = [sum(turn not in toy.FILLER for turn in window) for window in windows]
    tokens = [sum(len(turn.split()) for turn in window) for window in windows]
    assert sum(f for f, keep in zip(facts, kept, strict=True) if keep) > 0.93 * sum(facts)
    assert sum(t for t, keep in zip(tokens, kept, strict=True) if keep) < 0.6 * sum(tokens)


def test_entities() -> None:
    found = entities("Yesterday I met Anna Maria Keller at Starbucks. She paid 12 euros on May 7, in Rome!")
    assert found == ["yesterday", "anna maria keller", "starbucks", "12", "may", "7", "rome"]
    assert entities("How are you? I am fine, thanks.") == []
    assert new_entities("Anna went to Oslo.", "I know Anna.") == ["oslo"]


def test_a_changed_fact_is_not_dropped() -> None:
    history = "Anna lives at 12 Hill Road and likes the garden."
    assert unseen_detail("Anna lives at 14 Hill Road and likes the garden.", history)
    assert unseen_detail("Anna does not like the garden.", history)
    assert unseen_detail("Anna comes on Friday.", history)
    assert not unseen_detail("Anna lives at 12 Hill Road.", history)
    assert not unseen_detail("How lovely for Anna!", history)


def test_cosine_of_turns() -> None:
    one = np.array([[1, 0], [0, 1]], np.float32)
    assert cosine(one, np.array([[1, 0]], np.float32)) == pytest.approx(2**-0.5)
    assert cosine(one, np.zeros((0, 2), np.float32)) == 0.0


def test_the_threshold_of_the_surprisal_keeps_as_many() -> None:
    scores = [(0.1, 3.0), (0.5, 1.0), (0.6, 2.0), (0.2, 0.5), (0.9, None)]
    limit = keeps_as_many(scores, THRESHOLD)
    assert limit == 2.0  # two of four pass by novelty, and two by surprisal
    assert keeps_as_many([(0.1, 3.0)], THRESHOLD) == float("inf")
    assert keeps_as_many([], THRESHOLD) == 0.0
