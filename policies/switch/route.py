"""Whole-request routing by the entropy of a short draft: the coarse alternative to switching token by token."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from waver.engines.base import Step
from waver.engines.decision import Decision
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job, continuation, within_answer


class Route(Policy):
    """Draft a few tokens on the small engine; if their mean entropy is high, the large engine answers instead."""

    stage: ClassVar[Stage] = "decode"
    takes_pictures: ClassVar[bool] = True
    engine_fields: ClassVar[tuple[str, ...]] = ("small", "large")
    defaults_for: ClassVar[str | None] = (
        "no pair: a place to start, which no sum of the bundled pair reaches; `waver calibrate policy route` finds the "
        "threshold of a pair"
    )

    name: Literal["route"] = "route"
    small: str = Field(default="small", description="engine that drafts, and answers if it is sure")
    large: str = Field(default="large", description="engine that answers from the start if the small one is not sure")
    threshold: float = Field(
        default=0.1, ge=0.0, description="mean entropy of the draft from which the large engine answers (nats)"
    )
    draft_tokens: int = Field(default=16, ge=1, le=1024, description="tokens in the draft")

    def possible_jobs(self, job: Job) -> list[Job]:
        return [continuation(job, job.prompt_ids[-1:], self.small), replace(job, engine=self.large)]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        async with aclosing(proceed(continuation(job, (), self.small, max_new=self.draft_tokens))) as draft:
            steps = [step async for step in draft]
        mean = sum(step.entropy for step in steps) / len(steps)
        then = "switch" if mean >= self.threshold else "stay"
        decided: tuple[Decision, ...] = (Decision(self.name, then, mean, self.threshold, self.small),)
        if then == "switch":
            job.report.discarded += len(steps)
            async with aclosing(proceed(replace(job, engine=self.large))) as answer:
                async for step in answer:
                    yield step.decided(*decided)
                    decided = ()
            return
        steps[0] = steps[0].decided(*decided)
        written = [step.token for step in steps]
        steps[-1] = within_answer(steps[-1], job, written)
        for step in steps:
            yield step
        if steps[-1].finish:
            return
        async with aclosing(proceed(continuation(job, written, self.small))) as answer:
            async for step in answer:
                yield step
