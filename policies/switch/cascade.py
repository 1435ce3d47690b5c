"""Cascade of two engines: the large one answers again where the small one's whole answer wavers.

The deferral rule of a language model cascade by token-level uncertainty (arXiv 2404.10136, section 3), with the
next-token entropy as the uncertainty: a quantile of it over the answer, or the mean. A quantile is not diluted by the
many sure tokens of a long answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from waver.engines.base import Step
from waver.engines.decision import Decision
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job


class Cascade(Policy):
    """Answer again on the large engine where the small one wavers."""

    stage: ClassVar[Stage] = "decode"
    takes_pictures: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2404.10136"
    engine_fields: ClassVar[tuple[str, ...]] = ("small", "large")

    name: Literal["cascade"] = "cascade"
    small: str = Field(default="small", description="engine that answers first")
    large: str = Field(default="large", description="engine that answers again if the small one was not sure")
    threshold: float = Field(
        default=0.1, ge=0.0, description="entropy of the answer from which the large engine answers again (nats)"
    )
    quantile: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="which quantile of the tokens' entropies is compared; default: their mean",
    )

    def possible_jobs(self, job: Job) -> list[Job]:
        return [replace(job, engine=self.small), replace(job, engine=self.large)]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        async with aclosing(proceed(replace(job, engine=self.small))) as answer:
            steps = [step async for step in answer]
        value = self.uncertainty([step.entropy for step in steps])
        wavers = value >= self.threshold
        then = "switch" if wavers else "stay"
        decided: tuple[Decision, ...] = (Decision(self.name, then, value, self.threshold, self.small),)
        if not wavers:
            for step in steps:
                yield step.decided(*decided)
                decided = ()
            return
        job.report.discarded += len(steps)
        async with aclosing(proceed(replace(job, engine=self.large))) as again:
            async for step in again:
                yield step.decided(*decided)
                decided = ()

    def uncertainty(self, entropies: Sequence[float]) -> float:
        """Return the mean, or the quantile, of an answer's entropies (nats)."""
        return float(np.mean(entropies) if self.quantile is None else np.quantile(entropies, self.quantile))
