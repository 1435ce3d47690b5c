"""Begin an answer before it is known to be the one that is wanted.

Its first token is held back meanwhile, and what its first pass found out on the way has cost no pass of its own. Taken
up, the answer goes on as if nothing had been; dropped, it leaves nothing but the count of what was thrown away.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import torch

from waver.engines.base import Step
from waver.policies.base import Proceed
from waver.policies.job import Job


class HeadStart:
    """An answer to a job. Take it up or drop it, and once only."""

    def __init__(self, job: Job, proceed: Proceed) -> None:
        self._report = job.report
        self._before = dict(job.report.extra), job.report.discarded
        self._steps = proceed(job)
        self._first: Step | None = None

    async def state(self) -> torch.Tensor | None:
        """Wait for the first token: the hidden state that came with it, if `Sampling.state_of` asks for one."""
        self._first = await anext(self._steps)
        return self._first.state

    async def answer(self) -> AsyncGenerator[Step, None]:
        """Yield its steps, from the first on."""
        async with aclosing(self._steps) as steps:
            assert self._first is not None
            yield replace(self._first, state=None)
            async for step in steps:
                yield step

    async def drop(self) -> None:
        await self._steps.aclose()
        self._report.extra, self._report.discarded = self._before
        self._report.discarded += self._first is not None
