"""Answers that a gate draws to compare them with each other."""

from __future__ import annotations

from waver.concurrency import together
from waver.engines.base import Sampling
from waver.policies.helpers import draft as drawn
from waver.policies.job import Job
from waver.policies.retrieve.gates.draft import without_stop


async def sample_answers(job: Job, count: int, max_tokens: int, **shape: float) -> list[list[int]]:
    """Draw answers side by side at temperature 1: the ids of each, without its stop token. They count as discarded.

    Args:
        max_tokens: most tokens of each. shape: further fields of `Sampling`.
    """
    limit, seed = min(max_tokens, job.sampling.max_tokens), job.sampling.seed
    pictures = job.sampling.pictures

    async def one(number: int) -> list[int]:
        own = Sampling(1.0, max_tokens=limit, seed=(seed + number) % 2**63, logprobs=False, pictures=pictures, **shape)  # type: ignore[arg-type]
        return [step.token for step in without_stop(await drawn(job, job.prompt_ids, own), job)]

    return await together(*(one(number) for number in range(1, count + 1)))
