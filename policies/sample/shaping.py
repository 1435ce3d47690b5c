"""Make a policy of each transform: its parameters go, as a transform, to whichever engine writes.

`waver.engines.transforms` has the transforms, one in each file, and says in which order they are applied. A request has
at most one truncation: the order of its list of policies has no meaning, and that of two truncations would. The
request's own `top_p`, `min_p` and `top_k` cut further, after it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, ClassVar, cast

from pydantic import create_model

from waver.engines.base import Step
from waver.engines.transforms import Transform, Truncation
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job


class Shaping(Policy):
    """A policy that is a transform; subclasses are made by `as_policy`."""

    stage: ClassVar[Stage] = "sample"
    takes_pictures: ClassVar[bool] = True
    transform: ClassVar[type[Transform]]

    def possible_jobs(self, job: Job) -> list[Job]:
        own = self.transform.model_validate(self.model_dump())
        instead: dict[str, Any] = own.sampling_fields
        return [
            replace(job, sampling=replace(job.sampling, **instead or {"transforms": (*job.sampling.transforms, own)}))
        ]

    def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        (inner,) = self.possible_jobs(job)
        return proceed(inner)


def as_policy(transform: type[Transform]) -> type[Policy]:
    """Make the policy with the name, parameters, summary and paper of a transform. A truncation does not combine with
    another policy of its stage; any other transform does."""
    name, doc, module = transform.__name__, transform.__doc__, transform.__module__
    made = cast("type[Shaping]", create_model(name, __base__=(transform, Shaping), __module__=module, __doc__=doc))
    made.transform = transform
    made.combines = not issubclass(transform, Truncation)
    return made
