"""The margin gate: look passages up where the two likeliest tokens of the draft's positions are close (after TARG,
arXiv 2511.09803)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

from waver.engines.base import Step
from waver.policies.job import Job
from waver.policies.retrieve.gates.base import Gate, Verdict
from waver.policies.retrieve.gates.draft import Draft, above_threshold


def closeness(gap: float) -> float:
    """Compute exp(-gap) of the two likeliest tokens, in (0, 1]: 1 where they are equally likely. `gap` is the
    difference of their log-probabilities, which is that of their logits. TARG; the link is a reconstruction."""
    return math.exp(-gap)


def step_closeness(step: Step) -> float:
    """Compute the closeness of the two likeliest tokens at a position; 0 where they are not known."""
    best = [logprob for _, logprob in step.top_logprobs[:2]]
    return closeness(best[0] - best[1]) if len(best) == 2 else 0.0


def with_two_likeliest(job: Job) -> Job:
    """Return the job whose steps carry the two likeliest tokens."""
    return replace(job, sampling=replace(job.sampling, top_logprobs=max(job.sampling.top_logprobs, 2)))


class MarginGate(Gate):
    """The mean of exp(-gap) between the two likeliest tokens of the draft's positions."""

    name: ClassVar[str] = "margin"
    paper: ClassVar[str | None] = "arXiv 2511.09803"
    threshold: ClassVar[float | None] = 0.5

    def prepare(self, job: Job) -> Job:
        return with_two_likeliest(job)

    async def decide(self, draft: Draft) -> Verdict | None:
        found = above_threshold([step_closeness(step) for step in draft.told], draft, self.settings.threshold)
        return None if found is None else Verdict(*found)
