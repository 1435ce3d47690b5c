"""Helpers for policies: ask an engine for a whole text or JSON, decode a job of its own, emit a fixed text."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from waver.engines.base import NO_TOKEN, Engine, Sampling, Step, Unsupported
from waver.policies.job import Job
from waver.policies.report import Report

if TYPE_CHECKING:
    from waver.policies.base import Proceed


async def draft(job: Job, prompt_ids: Sequence[int], sampling: Sampling, engine: Engine | None = None) -> list[Step]:
    """Decode a text beside the answer: the steps of what an engine (default: the job's writer) makes of a prompt.

    Its tokens count as discarded. It is aborted with the request.

    Raises:
        Unsupported, EngineError: as `Engine.generate`.
    """
    made: list[Step] = []
    try:
        async with aclosing((engine or job.writer).generate(prompt_ids, sampling)) as steps:
            async for step in steps:
                made.append(step)  # noqa: PERF401  # what is there when it is aborted counts too
    finally:
        job.report.discarded += sum(step.token != NO_TOKEN for step in made)
    return made


async def ask(
    job: Job, messages: Sequence[Mapping[str, str]], max_tokens: int, engine: Engine | None = None, **sampling: Any
) -> str:
    """Ask an engine (default: the job's writer) for a whole text; greedily, unless `sampling` says how.

    Args:
        messages: the conversation, as chat templates take it. Words that look like control tokens stay words.
        max_tokens: most tokens of the text; fewer where the context has no room for them.

    Returns:
        The text without white space around it; empty where the context has no room for any.
    """
    writer = engine or job.writer
    ids = writer.tokens.chat([dict(message) for message in messages])
    room = min(max_tokens, writer.context_length - len(ids))
    if room <= 0:
        return ""
    how = Sampling(**{"temperature": 0.0, "logprobs": False, **sampling, "max_tokens": room})
    steps = await draft(job, ids, how, writer)
    return writer.tokens.decode([step.token for step in steps if step.token != NO_TOKEN]).strip()


async def ask_json(
    job: Job,
    messages: Sequence[Mapping[str, str]],
    schema: Mapping[str, Any],
    max_tokens: int,
    engine: Engine | None = None,
    **sampling: Any,
) -> Any:
    """Ask an engine for JSON that follows a schema, as `ask` does; an engine that cannot be guided writes freely, and
    what stands between the first brace and the last is read.

    Returns:
        What it wrote, which may be cut off by `max_tokens` and then is None, as is everything that is no JSON.
    """
    try:
        text = await ask(job, messages, max_tokens, engine, grammar=json.dumps(schema), **sampling)
    except Unsupported:
        text = await ask(job, messages, max_tokens, engine, **sampling)
    begin, end = text.find("{"), text.rfind("}")
    try:
        return json.loads(text[begin : end + 1]) if 0 <= begin < end else None
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class SubAnswer:
    """A whole answer to a sub-job: its steps, and its report."""

    steps: list[Step]
    report: Report

    @property
    def spent(self) -> int:
        """Tokens that were generated for it, those that it threw away itself included."""
        return len(self.steps) + self.report.discarded


def sub_job(job: Job) -> Job:
    """Open a job with an empty report of its own, to be decoded beside the answer."""
    return replace(job, report=Report(parameters=job.report.parameters))


async def run_sub_job(job: Job, proceed: Proceed) -> SubAnswer:
    """Decode the whole answer to a job as `proceed` does, with a report of its own. Whoever uses or throws away the
    steps counts them in the report of the answer."""
    own = sub_job(job)
    async with aclosing(proceed(own)) as made:
        steps = [step async for step in made]
    return SubAnswer(steps, own.report)


async def say(
    job: Job, text: str, finish: Literal["stop", "content_filter"] = "stop", by: str | None = None
) -> AsyncGenerator[Step, None]:
    """End the answer with a fixed text: a refusal, or a question to the user.

    Its tokens are ordinary tokens of the answer. Nobody drew them, so their entropy and log-probability are 0. A text
    that `max_tokens` leaves no room for is cut; an empty one just ends the answer.

    Args:
        finish: `content_filter` where an answer is withheld. by: name of the policy that does so, for the report.
    """
    if finish == "content_filter":
        job.report.filtered_by = by or "policy"
    begun = 0 if job.sampling.answer_start is None else len(job.prompt_ids) - job.sampling.answer_start
    ids = job.writer.tokens.encode_plain(text)[: max(job.sampling.max_tokens - begun, 0)]
    if not ids:
        yield Step(NO_TOKEN, 0.0, 0.0, job.engine, finish=finish)
    for i, token in enumerate(ids, 1):
        yield Step(token, 0.0, 0.0, job.engine, finish=finish if i == len(ids) else None)
