"""The best that a choice among strategies could do: all of them run, and one that knows the answer picks.

Of the runs that are right it takes the one with the fewest tokens; where none is, the one with the fewest tokens (it
counts as wrong). The tokens of the others are discarded. For evaluation: it needs the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from waver.answers import NUMBER, contains, number
from waver.concurrency import together
from waver.engines.base import Step
from waver.policies.base import Proceed
from waver.policies.helpers import SubAnswer, run_sub_job
from waver.policies.job import Job


@dataclass(frozen=True)
class Attempt:
    """A whole answer in one of the ways, and whether it is right."""

    answer: SubAnswer
    right: bool


def pick(runs: Mapping[str, tuple[bool, int]]) -> str:
    """Choose one of some `(right, tokens)`, by name."""
    return min(runs, key=lambda name: (not runs[name][0], runs[name][1]))


async def best(job: Job, ways: Mapping[str, Job], proceed: Proceed, answer: str) -> AsyncGenerator[Step, None]:
    """Yield the steps of the best run. The report's `strategy` names it, and `difficulty` has all `runs`."""
    made = await together(*(_attempt(way, proceed, answer) for way in ways.values()))
    attempts = dict(zip(ways, made, strict=True))
    chosen = pick({name: (each.right, len(each.answer.steps)) for name, each in attempts.items()})
    runs = {name: {"tokens": len(each.answer.steps), "right": each.right} for name, each in attempts.items()}
    given = attempts[chosen].answer
    job.report.extra |= given.report.extra | {"strategy": chosen, "difficulty": {"runs": runs}}
    job.report.discarded += sum(each.answer.spent for each in attempts.values()) - len(given.steps)
    for step in given.steps:
        yield step


async def _attempt(way: Job, proceed: Proceed, answer: str) -> Attempt:
    made = await run_sub_job(way, proceed)
    tokens = way.writer.tokens
    ids = [step.token for step in made.steps]
    if tokens.think is not None and tokens.think[1] in ids:
        ids = ids[len(ids) - ids[::-1].index(tokens.think[1]) :]  # what counts is said after the thinking
    judge = number if NUMBER.fullmatch(answer.strip()) else contains
    return Attempt(made, judge(tokens.decode(ids), answer))
