"""Reward answers to instructions: a little for each constraint, and much for all of them (arXiv 2508.03178)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from waver.training.tasks.instructions.base import Constraint
from waver.training.tasks.instructions.families import parse

THINK_END = "</think>"
ALL = 1.0
"""Earned on top where every constraint is met: an answer is right from this score on."""


@dataclass(frozen=True)
class Followed:
    """The score of an answer, and how many of its constraints it meets."""

    score: float
    met: int
    of: int


def follow(answer: str, constraints: Sequence[Constraint], think: bool = False) -> Followed:
    """Return score = the sum of the gains of constraints that are met + 1 if all are.

    The answer is what stands behind the last `</think>`. One that is empty follows nothing.

    Args:
        think: whether the tag must be there; without it the score is 0.
    """
    text = answer.rpartition(THINK_END)[2].strip()
    if not text or (think and THINK_END not in answer):
        return Followed(0.0, 0, len(constraints))
    met = [each.worth for each in constraints if each.met(text)]
    return Followed(sum(met) + ALL * (len(met) == len(constraints)), len(met), len(constraints))


def follows(completions: list[Any], constraints: list[Any], think: list[bool] | None = None, **_: Any) -> list[float]:
    """Return the score of each completion, as TRL calls a reward function."""
    needed = think or [False] * len(completions)
    said = [each if isinstance(each, str) else str(each[-1]["content"]) for each in completions]
    asked = zip(said, constraints, needed, strict=True)
    return [follow(answer, parse(rules), bool(thought)).score for answer, rules, thought in asked]


def no_constraints(row: dict[str, Any]) -> str | None:
    """Return the flaw of a row that `follows` cannot judge by."""
    try:
        worth = [each.worth for each in parse(row.get("constraints"))]
    except ValueError as error:
        return str(error)
    if sum(worth) - min(worth) >= ALL:
        return f"there are so many constraints that an answer which misses one earns {ALL:.0f}; give fewer"
    return None
