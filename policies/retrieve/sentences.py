"""Decode an answer sentence by sentence, for gates that decide about each.

A sentence is drafted after what is written; if the gate fires, passages are looked up and the sentence is written anew
with them in front of the question; then the next one. What is written stays. The first sentence, too, is drafted
without passages.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from waver.engines.base import Step
from waver.policies.base import Proceed
from waver.policies.job import Job, continuation, within_answer
from waver.policies.retrieve.gates.base import Gate
from waver.policies.retrieve.gates.draft import Draft
from waver.policies.retrieve.lookup import Lookup

END = re.compile(r"[.!?…][\"'”’)\]]*\s|\n")
"""A sentence ends where white space follows its mark."""


async def by_sentence(job: Job, proceed: Proceed, lookup: Lookup, gate: Gate) -> AsyncGenerator[Step, None]:
    """Yield the answer, sentence by sentence of at most `gate.longest` tokens."""
    assert job.question is not None
    question = job.question.text
    first = gate.prepare(await lookup.with_summaries() if gate.summaries else job)
    first = replace(first, sampling=replace(first.sampling, logprobs=True))
    written: list[int] = []
    scores: list[float] = []
    lookup.record |= {"sentences": 0, "retrievals": 0}
    while True:
        steps = await _sentence(first, proceed, written, gate.longest)
        verdict = await gate.decide(Draft(job, (*first.prompt_ids, *written), gate.longest, steps, complete=True))
        assert verdict is not None
        if verdict.score is not None:
            scores.append(verdict.score)
        lookup.decided(verdict, (max(scores) if gate.above else min(scores)) if scores else None)
        lookup.record["sentences"] += 1
        if verdict.fires:
            second = await lookup.with_passages(verdict.query or question)
            if second is not None and second.sampling.max_tokens > len(written):
                lookup.record["retrievals"] += 1
                lookup.discarded(steps)
                steps = await _sentence(second, proceed, written, gate.longest)
        for step in steps:
            written.append(step.token)
            step = within_answer(step, first, written)
            yield step
            if step.finish:
                return


async def _sentence(job: Job, proceed: Proceed, written: Sequence[int], longest: int) -> list[Step]:
    """Decode the next sentence."""
    stream, text = job.writer.tokens.stream(), ""
    steps: list[Step] = []
    async with aclosing(proceed(continuation(job, written, job.engine))) as drafted:
        async for step in drafted:
            text = (text + stream.push(step.token)).lstrip()
            if steps and END.search(text) and not text[-1].isspace():
                break  # the next sentence has begun: this token is its first
            steps.append(step)
            if step.finish or text.endswith("\n") or len(steps) == longest:
                break
    return steps
