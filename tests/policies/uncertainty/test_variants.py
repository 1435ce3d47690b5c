"""Other wordings of a question: paraphrases that are read from a list, and the genetic algorithm."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from waver.policies.uncertainty.similarity import of_cosines, shared_words
from waver.policies.uncertainty.variants import crossed, exactly, gaap, joined, keywords, listed, mutated, roulette

QUESTION = "Which river flows through the old town?"
SUBSTITUTES = {"river": ["stream", "water"], "town": ["city"]}


def test_similarities_of_cosines() -> None:
    cosines = np.array([[0.2, -0.2]])
    assert of_cosines(cosines, "embedding").tolist() == [[0.6, 0.4]]
    assert of_cosines(cosines, "abs").tolist() == [[0.2, 0.2]]
    assert shared_words(["a b", ""], ["b a!", "c", ""]).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_roulette() -> None:
    assert roulette((0.95, 0.9, 0.6, 0.75)) == pytest.approx([0.296875, 0.28125, 0.1875, 0.234375])


def test_lists_are_read() -> None:
    said = '1. What is it?\n2) "How is it?"\n\n- What is it?\n(3) Is it?\n27 + 5 is what?'
    assert listed(said) == ["What is it?", "How is it?", "Is it?", "27 + 5 is what?"]


def test_there_are_always_as_many() -> None:
    assert exactly(["a", "b"], 5, "q") == ["a", "b", "a", "b", "a"]
    assert exactly(list("abcde"), 3, "q") == ["a", "c", "e"]
    assert exactly(["q"], 2, "q") == ["q", "q"]


def test_operators() -> None:
    rng = random.Random(0)
    a, b = crossed(list("abcd"), list("wxyz"), rng)
    h = next(i for i in range(1, 4) if a[i] in "wxyz")
    assert (a, b) == (list("abcd")[:h] + list("wxyz")[h:], list("wxyz")[:h] + list("abcd")[h:])
    assert crossed(["a"], ["b"], rng) == [["a"], ["b"]]
    made = {joined(mutated(["the", "river"], SUBSTITUTES, rng)) for _ in range(60)}
    assert made == {"the river", "the stream", "the water", "the"}
    assert keywords(["the", "river", "is", "old", "?", "."], [0.1, 0.9, 0.2, 0.5, 1.0, 1.0], 0.4) == [1, 3]
    assert joined(["Is", "it", "old", "?"]) == "Is it old?"


async def similarity(texts: Sequence[str]) -> list[float]:
    return shared_words(texts, [QUESTION])[:, 0].tolist()


async def test_wordings_grow_apart_and_keep_the_rest() -> None:
    made = await gaap(QUESTION, similarity, SUBSTITUTES, 9, random.Random(3))
    assert len(made) == 9
    assert QUESTION not in made
    words = set("which river flows through the old town stream water city".split())
    assert all(set(each.lower().rstrip("?").split()) <= words for each in made)
    assert made == await gaap(QUESTION, similarity, SUBSTITUTES, 9, random.Random(3)), "a seed makes it repeatable"
    assert await gaap(QUESTION, similarity, {}, 2, random.Random(3)) == [QUESTION, QUESTION]


async def test_it_ends_once_all_are_too_far() -> None:
    asked: list[int] = []

    async def far(texts: Sequence[str]) -> list[float]:
        asked.append(len(texts))
        return [0.1] * len(texts)

    made = await gaap(QUESTION, far, SUBSTITUTES, 5, random.Random(0))
    assert asked == [5], "the first population: one keyword replaced or left out"
    assert "Which stream flows through the old town?" in made
