"""Novelty of a window of turns: new names and a new direction (SimpleMem, arXiv 2601.02553 v1, stage 1).

    H(W) = alpha * |E_new| / |W| + (1 - alpha) * (1 - cos(E(W), E(H_prev)))

E_new: named entities of the window that the history before it has not; |W|: its length in turns (the source does not
say turns or tokens). The paper calls it entropy; it is none of tokens. Before the first window the cosine is 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from waver.retrieval.base import Vectors

WORD = re.compile(r"[^\W_]+")
MOST_SPAN = 4
"""Words of one name."""
MONTHS = "january february march april may june july august september october november december".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
DATES = frozenset((*MONTHS, *DAYS)) - {"may"}
NEGATIONS = frozenset(
    "not no never none nothing nobody neither nor without cannot stopped quit cancelled canceled longer anymore "
    "dont doesnt didnt isnt wasnt arent wont cant couldnt wouldnt havent hasnt hadnt t".split()
)
"""Words that turn a fact around; `t` is what is left of `n't`."""
STARTERS = frozenset(
    "a about after again all also am an and any are as at be because been before but by can could did do does done for "
    "from get go going good got great had has have he hello her here hey hi his how i if in into is it its just keep "
    "know last let like look lots make many maybe me more most much my need new nice no not now of off oh ok okay on "
    "one only or our out over please really right same see she should so some sorry sounds still such sure take thank "
    "thanks that the their them then there these they thing this those to too up us use very was we well were what "
    "when where which while who whose why will wish with wow would yeah yes yet you your".split()
)
"""Words that begin sentences with a capital and are no names."""


def entities(text: str) -> list[str]:
    """Return the named entities of a text in lower case: spans of capitalised words, numbers and dates, once each."""
    found: dict[str, None] = {}
    span: list[str] = []
    end = 0

    def close() -> None:
        if span:
            found[" ".join(span)] = None
            span.clear()

    for match in WORD.finditer(text):
        word, between = match[0], text[end : match.start()]
        end = match.end()
        if between.strip() or len(span) == MOST_SPAN:
            close()
        if any(c.isdigit() for c in word) or word.lower() in DATES:
            close()
            found[word.lower()] = None
        elif word[0].isupper() and word.lower() not in STARTERS:
            span.append(word.lower())
        else:
            close()
    close()
    return list(found)


def new_entities(window: str, history: str) -> list[str]:
    """Return the entities of a window that the text before it does not have."""
    before = set(entities(history))
    return [each for each in entities(window) if each not in before]


def novelty(new: int, turns: int, cosine: float, alpha: float = 0.5) -> float:
    """Return H of a window with so many new entities and turns, whose cosine with its history is given."""
    return alpha * new / turns + (1 - alpha) * (1 - cosine)


def cosine(window: Vectors, history: Vectors) -> float:
    """Return the cosine between the mean unit vectors of turns, `[turns, dimension]` each; 0 without a history.

    The mean stands for the vector of the whole text, of which an encoder would read the beginning only.
    """
    if not len(window) or not len(history):
        return 0.0
    one, other = window.mean(axis=0), history.mean(axis=0)
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0


def unseen_detail(window: str, history: str) -> bool:
    """Return whether a window holds a number, a date or a negation that its history has not: a fact that is said again
    with another value is not novel by names and direction, and must not be dropped."""
    telling = _telling(window)
    return bool(telling - _telling(history))


def _telling(text: str) -> set[str]:
    words = {match[0].lower() for match in WORD.finditer(text)}
    return {word for word in words if word in NEGATIONS or word in DATES or any(c.isdigit() for c in word)}


def keeps_as_many(scores: Sequence[tuple[float, float | None]], threshold: float) -> float:
    """Return the surprisal (nats a token) that lets as large a share of windows pass as the novelty `threshold` does.

    Args:
        scores: novelty and surprisal of past windows; those without a surprisal are left out.
    """
    pairs = [(novel, surprise) for novel, surprise in scores if surprise is not None]
    if not pairs:
        return 0.0
    kept = sum(novel >= threshold for novel, _ in pairs)
    ordered = sorted((surprise for _, surprise in pairs), reverse=True)
    return ordered[kept - 1] if kept else float("inf")
