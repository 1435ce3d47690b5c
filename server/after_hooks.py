"""Run the `after` hooks of policies once an answer has ended: outside of the client's latency, within a time limit, and
charged to the answer's key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from waver.policies.answer import Answer
from waver.policies.base import Policy
from waver.policies.job import Job

log = structlog.get_logger("waver")

SECONDS = 60.0
"""Longest time that one policy may take after one answer."""
AT_ONCE = 16
"""Answers that are worked on side by side; the others wait."""


class AfterHooks:
    """The running `after` hooks, one task per answer."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def begin(self, policies: Sequence[Policy], job: Job, answer: Answer) -> None:
        """Start the `after` of each policy that has one, the outermost first, and return at once."""
        acting = [policy for policy in policies if policy.acts_after()]
        if acting:
            task = asyncio.create_task(self._run(acting, job, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def running(self) -> frozenset[asyncio.Task[None]]:
        """Return the tasks of the answers that are worked on, or wait for it."""
        return frozenset(self._tasks)

    async def settle(self, seconds: float) -> None:
        """Wait until all hooks have ended, for at most `seconds`; then cancel those that have not."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(set(self._tasks), timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            log.error("work after answers was given up at shutdown", answers=len(late))
            await asyncio.wait(late)

    async def _run(self, policies: Sequence[Policy], job: Job, answer: Answer) -> None:
        async with self._slots:
            for policy in policies:
                try:
                    with job.services.charged(job.caller.owner, policy.name) as services:
                        async with asyncio.timeout(SECONDS):
                            await policy.after(replace(job, services=services), answer)
                except Exception as error:
                    # Its message may quote the prompt or the caller: only its kind and place are logged.
                    log.error("a policy failed after an answer", policy=policy.name, error=place(error))


def place(error: BaseException) -> str:
    """Return the type of an exception and the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" at {trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"
    return f"{type(error).__name__}{where}"
