"""What policies of the stage `sample` share: their own parameters, as a transform, go to whichever engine writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import ClassVar

from waver.engines import transforms
from waver.engines.base import Sampling, Step
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job


class Shaping(Policy):
    """A policy that is a transform; `waver.engines.transforms` says in which order transforms are applied."""

    stage: ClassVar[Stage] = "sample"

    def possible_jobs(self, job: Job) -> list[Job]:
        return [replace(job, sampling=self.apply(job.sampling))]

    def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        (inner,) = self.possible_jobs(job)
        return proceed(inner)

    def apply(self, sampling: Sampling) -> Sampling:
        own = transforms.from_data(self.model_dump())
        return replace(sampling, transforms=(*sampling.transforms, own))
