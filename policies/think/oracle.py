"""The best that a choice among strategies could do: all of them run, and one that knows the answer picks.

Of the runs that are right it takes the one with the fewest tokens; where none is, the one with the fewest tokens (it
counts as wrong). The tokens of the others are discarded. For evaluation: it needs the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from waver.answers import NUMBER, contains, number
from waver.engines.base import Step
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.report import Report


@dataclass(frozen=True)
class Run:
    """One way to answer, as it went."""

    steps: list[Step]
    report: Report
    right: bool


def pick(runs: Mapping[str, tuple[bool, int]]) -> str:
    """Which of some `(right, tokens)` to take."""
    return min(runs, key=lambda name: (not runs[name][0], runs[name][1]))


async def best(job: Job, ways: Mapping[str, Job], proceed: Proceed, answer: str) -> AsyncGenerator[Step, None]:
    """The steps of the best run. The report's `strategy` names it, and `difficulty` has all `runs`."""
    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(_run(way, proceed, answer)) for name, way in ways.items()}
    runs = {name: task.result() for name, task in tasks.items()}
    chosen = pick({name: (run.right, len(run.steps)) for name, run in runs.items()})
    job.report.extra |= runs[chosen].report.extra | {
        "strategy": chosen,
        "difficulty": {"runs": {name: {"tokens": len(r.steps), "right": r.right} for name, r in runs.items()}},
    }
    spent = sum(len(run.steps) + run.report.discarded for run in runs.values())
    job.report.discarded += spent - len(runs[chosen].steps)
    for step in runs[chosen].steps:
        yield step


async def _run(way: Job, proceed: Proceed, answer: str) -> Run:
    own = replace(way, report=Report(parameters=way.report.parameters))
    async with aclosing(proceed(own)) as made:
        steps = [step async for step in made]
    tokens = way.writer.tokens
    ids = [step.token for step in steps]
    if tokens.think is not None and tokens.think[1] in ids:
        ids = ids[len(ids) - ids[::-1].index(tokens.think[1]) :]  # what counts is said after the thinking
    judge = number if NUMBER.fullmatch(answer.strip()) else contains
    return Run(steps, own.report, judge(tokens.decode(ids), answer))
