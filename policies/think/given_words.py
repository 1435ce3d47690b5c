"""Words that a policy puts into an answer: tokens of it like all others, with the entropies that the model has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from weakref import WeakValueDictionary

from waver.engines.base import Engine, Step, Unsupported
from waver.engines.metering import unmetered
from waver.policies.job import Job

_SCORE: WeakValueDictionary[int, Engine] = WeakValueDictionary()
"""Engines that have been seen to score a text, by id."""


async def check_scoring(job: Job, words: str, policy: str) -> None:
    """Check that the engine of a job scores a given text.

    Raises:
        Unsupported: it does not.
    """
    engine = unmetered(job.writer)
    if _SCORE.get(id(engine)) is engine:
        return
    try:
        await engine.score((*job.prompt_ids[-1:], *engine.tokens.encode_plain(words))[:2])
    except Unsupported as error:
        raise Unsupported(
            f"{policy} has its words scored, and engine {engine.name!r} does not score a given text", "policy"
        ) from error
    _SCORE[id(engine)] = engine


async def given(job: Job, written: Sequence[int], words: Sequence[int]) -> AsyncGenerator[Step, None]:
    """Yield words as steps behind what has been written of an answer."""
    scored = await job.writer.score((*job.prompt_ids, *written, *words), job.sampling.top_logprobs)
    for step in scored[-len(words) :]:
        yield step
