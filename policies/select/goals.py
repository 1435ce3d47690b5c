"""Score partial answers by the goals that they meet (BES, arXiv 2605.28814).

With v(g) in 0..1 how far a text meets a goal:

    S(g) = 1 if v(g) >= 1 - 1e-6, v(g) for a leaf, else 0.3 * v(g) + 0.7 * mean S of the children
    J(g) = 1 if max(v_a(g), v_b(g)) >= 1, that maximum for a leaf, else the mean J of the children

S is the score of one text, J what two texts meet together. S falls where a leaf with 0 < v < 1 is split into goals that
are met less: goals here have values 0 and 1, and are not split later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from waver import knights
from waver.timed_patterns import searcher

OWN, CHILDREN, MET = 0.3, 0.7, 1 - 1e-6
EXPRESSION = re.compile(r"-?\d{1,9}(?: ?[+-] ?\d{1,9})+")
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Goal:
    """A goal: the place of its value among all values, and the goals that it is split into."""

    at: int
    children: tuple[Goal, ...] = ()


def score(goal: Goal, values: Sequence[float]) -> float:
    """Return S of a text whose values of all goals are given."""
    own = values[goal.at]
    if own >= MET:
        return 1.0
    if not goal.children:
        return float(own)
    return OWN * own + CHILDREN * sum(score(each, values) for each in goal.children) / len(goal.children)


def joint(goal: Goal, one: Values, other: Values) -> Values:
    """Return J of pairs of texts `[pairs]`, whose values `[pairs, goals]` are given."""
    best = np.maximum(one[:, goal.at], other[:, goal.at])
    if not goal.children:
        return best
    below = np.mean([joint(each, one, other) for each in goal.children], axis=0)
    found: Values = np.where(best >= 1, 1.0, below)
    return found


@dataclass(frozen=True)
class Verdict:
    """The values of all goals, the root's first; `wrong` where the text says something that is refuted."""

    values: tuple[float, ...]
    wrong: bool = False

    @property
    def solved(self) -> bool:
        return self.values[0] >= MET


@dataclass(frozen=True)
class Task:
    """Goals of a question, and what tells which of them a text meets. `names` are for the report."""

    root: Goal
    names: tuple[str, ...]
    judge: Callable[[str], Verdict]


def _flat(names: Sequence[str], judge: Callable[[str], Verdict]) -> Task:
    """Make a task of a root and of leaves below it."""
    return Task(Goal(0, tuple(Goal(i) for i in range(1, len(names) + 1))), ("all", *names), judge)


def regex_task(patterns: Sequence[str]) -> Task:
    """Make a task of patterns, all of which a text has to contain.

    Raises:
        ValueError: one is no pattern.
    """
    try:
        contained = searcher(patterns)
    except ValueError as error:
        raise ValueError(f"a goal is no pattern: {error}") from None

    def judge(text: str) -> Verdict:
        found = [float(each) for each in contained(text)]
        return Verdict((float(all(found)), *found))

    return _flat(patterns, judge)


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

    return _flat([f"total {total}" for total in totals], judge)


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

    return _flat([each.text for each in puzzle.statements], judge)
