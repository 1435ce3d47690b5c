"""Truncation by the shape of the distribution: seven rules, each a policy of one parameter, and what they share.

A rule and its parameters travel to where the logits are; `engines.transforms` says in which order it is applied there,
and `entropy.truncation` has the formulas and their sources. A request has at most one of them: the order of its list of
policies has no meaning, and that of two truncations would. The request's own `top_p`, `min_p` and `top_k` cut further,
after it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import ClassVar

from engines import transforms
from engines.base import Sampling, Step
from policies.base import Job, Policy, Proceed, Stage


class Truncation(Policy):
    """What a truncating policy does: its own parameters, as a transform, go to whichever engine writes."""

    stage: ClassVar[Stage] = "sample"

    def foresee(self, job: Job) -> list[Job]:
        return [replace(job, sampling=self.apply(job.sampling))]

    def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        (inner,) = self.foresee(job)
        return proceed(inner)

    def apply(self, sampling: Sampling) -> Sampling:
        own = transforms.from_data(self.model_dump())
        return replace(sampling, transforms=(*sampling.transforms, own))


class TopP(transforms.TopP, Truncation):
    """Keep the smallest set of most likely tokens with a given mass (nucleus sampling)."""

    paper: ClassVar[str] = "arXiv 1904.09751"

    def apply(self, sampling: Sampling) -> Sampling:
        """The engine's own `top_p`, over that of the request."""
        return replace(sampling, top_p=self.p)


class MinP(transforms.MinP, Truncation):
    """Keep tokens at least so many times as likely as the most likely one."""

    paper: ClassVar[str] = "arXiv 2407.01082"

    def apply(self, sampling: Sampling) -> Sampling:
        """The engine's own `min_p`, over that of the request."""
        return replace(sampling, min_p=self.p)


class Typical(transforms.Typical, Truncation):
    """Keep the tokens whose surprisal is nearest to the entropy, up to a given mass; may drop the most likely one."""

    paper: ClassVar[str] = "arXiv 2202.00666"


class Eta(transforms.Eta, Truncation):
    """Keep tokens above a probability that falls as the entropy grows."""

    paper: ClassVar[str] = "arXiv 2210.15191"


class Epsilon(transforms.Epsilon, Truncation):
    """Keep tokens above a fixed probability."""

    paper: ClassVar[str] = "arXiv 2210.15191"


class TopNSigma(transforms.TopNSigma, Truncation):
    """Keep logits within so many standard deviations of the largest, whatever the temperature."""

    paper: ClassVar[str] = "arXiv 2411.07641"


class TopH(transforms.TopH, Truncation):
    """Keep the most likely tokens up to a part of the distribution's entropy."""

    paper: ClassVar[str] = "arXiv 2509.02510"
