"""Control for EAD: switch between two engines blindly, at a given share of tokens."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import groupby
from typing import ClassVar, Literal

from pydantic import Field

from waver.engines.base import Step
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job, continuation, within_answer


class RandomSwitch(Policy):
    """Let chance decide who writes each token: the control for switching policies."""

    stage: ClassVar[Stage] = "decode"
    takes_pictures: ClassVar[bool] = True
    engine_fields: ClassVar[tuple[str, ...]] = ("small", "large")
    evaluation: ClassVar[Mapping[str, tuple[str, ...]]] = {"name": ("random_switch",)}

    name: Literal["random_switch"] = "random_switch"
    small: str = Field(default="small", description="engine that writes the rest")
    large: str = Field(default="large", description="engine that writes a share of the tokens")
    rate: float = Field(default=0.5, ge=0.0, le=1.0, description="share of tokens on the large engine")

    def possible_jobs(self, job: Job) -> list[Job]:
        if self.rate in (0.0, 1.0):
            return [replace(job, engine=self.large if self.rate else self.small)]
        return [continuation(job, job.prompt_ids[-1:], engine) for engine in (self.small, self.large)]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        rng = random.Random(f"random_switch:{job.sampling.seed}")
        written: list[int] = []
        writers = (rng.random() < self.rate for _ in range(job.sampling.max_tokens))
        for on_large, run in groupby(writers):
            count = sum(1 for _ in run) if 0.0 < self.rate < 1.0 else job.sampling.max_tokens
            segment = proceed(continuation(job, written, self.large if on_large else self.small, max_new=count))
            async with aclosing(segment):
                async for step in segment:
                    written.append(step.token)
                    step = within_answer(step, job, written)
                    yield step
                    if step.finish:
                        return
