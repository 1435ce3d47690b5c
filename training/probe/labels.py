"""Label questions as easy, normal or hard: DiffAdapt's rules (arXiv 2510.19669), their thresholds, and the oracle.

All is judged by a model's own answers. Where few are right, a question is hard; where nearly all are and their tokens
waver, it is easy: that is the left arm of the U that mean trace entropy draws over difficulty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

CLASSES = ("easy", "normal", "hard")
"""The names of a probe's outputs, in order."""
EASY, NORMAL, HARD = range(3)
"""Their places."""
PLAIN = "plain"
"""The way of answering that labels are made from; the others are strategies, named as the classes are."""
SURE = 0.9
"""Rate of right answers from which a question counts for the suggested beta."""
LOST = 0.01
"""Accuracy that the suggestion from the strategies' answers may lose on questions that it calls easy."""


@dataclass(frozen=True)
class Trace:
    """One answer: whether it is right, its tokens, and the mean entropy of these (nats, whole vocabulary). `cut`: it
    ran into its limit."""

    right: bool
    tokens: int
    entropy: float
    cut: bool


@dataclass(frozen=True)
class Answers:
    """All answers to a question in one way, each weighing the same: shares of right and of cut ones, mean tokens, and
    mean entropy (nats)."""

    right: float
    tokens: float
    entropy: float
    cut: float

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> Answers:
        right, cut = (fmean(getattr(trace, name) for trace in traces) for name in ("right", "cut"))
        return cls(right, fmean(t.tokens for t in traces), fmean(t.entropy for t in traces), cut)


Ways = Mapping[str, Answers]
"""A question's answers, by the way they were asked for."""


@dataclass(frozen=True)
class Thresholds:
    """`alpha` and `gamma` are rates of right answers, `beta` is an entropy (nats). The defaults are the paper's."""

    alpha: float = 0.85
    beta: float = 0.35
    gamma: float = 0.60


def paper(asked: Ways, t: Thresholds) -> int:
    """Return normal where answers are right and sure, hard where they are wrong, else easy."""
    plain = asked[PLAIN]
    if plain.right > t.alpha and plain.entropy < t.beta:
        return NORMAL
    return HARD if plain.right < t.gamma else EASY


def strict_easy(asked: Ways, t: Thresholds) -> int:
    """Label as `paper` does, but call normal what is neither surely right nor hard, so that easy is no catch-all."""
    plain = asked[PLAIN]
    if plain.right < t.gamma:
        return HARD
    return EASY if plain.right > t.alpha and plain.entropy >= t.beta else NORMAL


def oracle(asked: Ways, t: Thresholds | None = None) -> int:
    """Return the strategy that is right most often, and of several the one with the fewest tokens.

    With one answer each this is the paper's oracle: the cheapest right one, or the cheapest where none is right.
    """
    return cheapest_right([asked[name] for name in ("easy", "normal", "hard")])


def cheapest_right(runs: Sequence[Answers]) -> int:
    """Return the place of the run that is right most often, and of several of the one with the fewest tokens."""
    return min(range(len(runs)), key=lambda place: (-runs[place].right, runs[place].tokens))


RULES: dict[str, Callable[[Ways, Thresholds], int]] = {"paper": paper, "strict_easy": strict_easy, "oracle": oracle}
"""Each from a question's answers and thresholds to its class. `oracle` needs answers in all strategies."""


def median_beta(questions: Sequence[Ways]) -> float:
    """Suggest beta: the median entropy of the questions that are answered rightly nearly always.

    Raises:
        ValueError: there are none.
    """
    sure = [asked[PLAIN].entropy for asked in questions if asked[PLAIN].right >= SURE]
    if not sure:
        raise ValueError(f"no question has {SURE:.0%} of its answers right: these are too hard for this model")
    return median(sure)


def solved_beta(questions: Sequence[Ways], alpha: float) -> float:
    """Return the least beta whose easy questions (right above `alpha`, entropy from beta on) the easy strategy solves
    as well as the normal one, all in all, but for `LOST`; just above all entropies if there is none."""
    sure = sorted((q for q in questions if q[PLAIN].right > alpha), key=lambda q: -q[PLAIN].entropy)
    beta, lost = math.nextafter(max(q[PLAIN].entropy for q in questions), math.inf), 0.0
    for count, asked in enumerate(sure, 1):
        lost += asked["normal"].right - asked["easy"].right
        if lost <= LOST * count:
            beta = asked[PLAIN].entropy
    return beta
