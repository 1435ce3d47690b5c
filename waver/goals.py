"""Score partial answers by the goals that they meet (BES, arXiv 2605.28814).

With v(g) in 0..1 how far a text meets a goal:

    S(g) = 1 if v(g) >= 1 - 1e-6, v(g) for a leaf, else 0.3 * v(g) + 0.7 * mean S of the children
    J(g) = 1 if max(v_a(g), v_b(g)) >= 1, that maximum for a leaf, else the mean J of the children

S is the score of one text, J what two texts meet together. S falls where a leaf with 0 < v < 1 is split into goals that
are met less: goals here are not split later. Goals that have an order (`ordered`, the paper's sub-questions) count up
to the first that is not met, and weigh 0.3 beside 0.7 for the answer itself.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from waver import knights
from waver.timed_patterns import in_threads, searcher

OWN, CHILDREN, MET = 0.3, 0.7, 1 - 1e-6
EXPRESSION = re.compile(r"-?\d{1,9}(?: ?[+-] ?\d{1,9})+")
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Goal:
    """A goal: the place of its value among all values, and the goals that it is split into. `ordered`: each of these
    counts only if those before it are met."""

    at: int
    children: tuple[Goal, ...] = ()
    ordered: bool = False

    @property
    def weights(self) -> tuple[float, float]:
        """The weights of its own value and of its children."""
        return (CHILDREN, OWN) if self.ordered else (OWN, CHILDREN)


def score(goal: Goal, values: Sequence[float]) -> float:
    """Return S of a text whose values of all goals are given."""
    own = values[goal.at]
    if own >= MET and not goal.ordered:
        return 1.0
    if not goal.children:
        return float(own)
    mine, theirs = goal.weights
    below = np.array([score(each, values) for each in goal.children])
    return float(mine * own + theirs * _together(goal, below))


def joint(goal: Goal, one: Values, other: Values) -> Values:
    """Return J of pairs of texts `[pairs]`, whose values `[pairs, goals]` are given."""
    best = np.maximum(one[:, goal.at], other[:, goal.at])
    if not goal.children:
        return best
    below = _together(goal, np.array([joint(each, one, other) for each in goal.children]))
    if goal.ordered:
        mine, theirs = goal.weights
        return np.asarray(mine * best + theirs * below)
    found: Values = np.where(best >= 1, 1.0, below)
    return found


def _together(goal: Goal, below: Values) -> Values:
    """Return the mean over children, `[children, ...]`; of ordered ones the share of those up to the first that is not
    met."""
    counted = np.cumprod(below >= MET, axis=0) if goal.ordered else below
    found: Values = np.asarray(counted, np.float64).mean(axis=0)
    return found


@dataclass(frozen=True)
class Verdict:
    """The values of all goals, the root's first; `wrong` where the text says something that is refuted."""

    values: tuple[float, ...]
    wrong: bool = False

    @property
    def solved(self) -> bool:
        return self.values[0] >= MET


Judge = Callable[[str], Awaitable[Verdict]]


class NotJudged(Exception):
    """A verifier failed; the message says which it is, `detail` how it failed."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


@dataclass(frozen=True)
class Task:
    """Goals of a question, and what tells which of them a text meets. `names` are for the report."""

    root: Goal
    names: tuple[str, ...]
    judge: Judge


def flat(names: Sequence[str], judge: Judge) -> Task:
    """Make a task of a root and of leaves below it."""
    return Task(Goal(0, tuple(Goal(i) for i in range(1, len(names) + 1))), ("all", *names), judge)


def _quick(judge: Callable[[str], Verdict]) -> Judge:
    """Judge on the event loop: it takes no time to speak of."""

    async def judged(text: str) -> Verdict:
        return judge(text)

    return judged


def regex_task(patterns: Sequence[str]) -> Task:
    """Make a task of patterns, all of which a text has to contain.

    Raises:
        ValueError: one is no pattern.
    """
    try:
        contained = searcher(patterns)
    except ValueError as error:
        raise ValueError(f"a goal is no pattern: {error}") from None

    async def judge(text: str) -> Verdict:
        found = [float(each) for each in await in_threads(contained, text)]
        return Verdict((float(all(found)), *found))

    return flat(patterns, judge)


def sum_task(question: str) -> Task:
    """Make a task of a chain of additions and subtractions in a question: the running totals are its goals, and the
    text has to end with the last.

    Raises:
        ValueError: there is no such chain.
    """
    found = EXPRESSION.search(question)
    if found is None:
        raise ValueError("there is no sum such as 12 + 34 - 5 in the question")
    parts = [int(each) for each in re.findall(r"[+-]?\d+", found[0].replace(" ", ""))]
    totals = [sum(parts[:count]) for count in range(2, len(parts) + 1)]

    def judge(text: str) -> Verdict:
        said = [int(each) for each in re.findall(r"(?<![\w.])-?\d{1,12}(?![\w.]\d)", text)]
        met = [float(total in said) for total in totals]
        right = bool(said) and said[-1] == totals[-1]
        return Verdict((float(right), *met))

    return flat([f"total {total}" for total in totals], _quick(judge))


def knights_task(question: str) -> Task:
    """Make a task of a puzzle of knights and knaves: each statement has to fit what a text claims of everybody in it.
    The solution is not used: a claim is wrong where a statement refutes it together with other claims.

    Raises:
        ValueError: there is no puzzle in the question.
    """
    puzzle = knights.read(question)

    def judge(text: str) -> Verdict:
        claims = knights.claims(text, puzzle.people)
        fits = [each.fits(claims) for each in puzzle.statements]
        everybody = len(claims) == len(puzzle.people) and all(fits)
        return Verdict((float(everybody), *(float(fit is True) for fit in fits)), wrong=any(f is False for f in fits))

    return flat([each.text for each in puzzle.statements], _quick(judge))
