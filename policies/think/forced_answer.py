"""Forced answers: an answer that its limit would cut off is brought to its end (after DiffAdapt, arXiv 2510.19669).

Where decoding stops by length, words that announce the answer are appended, and the model writes on for a few tokens,
up to a closing brace. List it beside every policy of a comparison or beside none: it changes accuracy and length alike.

Details:
- The paper's code adds these tokens to the limit. A request's `max_tokens` is a promise here: they come out of it, at
  most half of it. Under `diffadapt` the limit is the strategy's share.
- The words are tokens of the answer: shown, counted, and in the trace with the entropies and log-probabilities that the
  model has for them. The engine must be able to score a given text.
- A think block that is still open is closed first, so that the answer stands behind it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from waver.engines.base import Step, Unsupported
from waver.engines.decision import Decision
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.job import Job, continuation
from waver.policies.report import Report
from waver.policies.think.given_words import check_scoring, given


class ForcedAnswer(Policy):
    """Bring an answer that its limit would cut off to its end, within that limit."""

    stage: ClassVar[Stage] = "finish"
    paper: ClassVar[str] = "arXiv 2510.19669"
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_forced_answers", "Answers cut off and brought to an end."),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "forced_answer": "whether the answer was cut off and brought to its end, and after how many tokens",
    }

    name: Literal["forced_answer"] = "forced_answer"
    words: str = Field(
        default="\nThe final answer is \\boxed{", min_length=1, max_length=1024, description="what announces the answer"
    )
    tokens: int = Field(default=128, ge=1, le=4096, description="most tokens that follow the words")
    temperature: float | None = Field(
        default=0.6, ge=0.0, le=2.0, description="at which they are drawn; null: the request's own"
    )
    until: str = Field(
        default="}",
        min_length=1,
        max_length=64,
        description="text that ends the answer; a brace counts once those opened behind the words are closed",
    )

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        return (("waver_forced_answers", ()),) if report.extra.get("forced_answer", {}).get("forced") else ()

    async def check(self, job: Job) -> None:
        if job.sampling.grammar is not None:
            raise Unsupported(
                "a forced answer would break what response_format or a forced call asks for; use one of them", "policy"
            )
        await check_scoring(job, self.words, self.name)

    def possible_jobs(self, job: Job) -> list[Job]:
        if self._limit(job) == job.sampling.max_tokens:
            raise Unsupported(
                f"a limit of {job.sampling.max_tokens} tokens leaves no room for an answer and the words of a forced "
                "one; raise max_tokens",
                "policy",
            )
        return [self._first(job), self._last(job, job.prompt_ids[-1:])]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        start = len(job.prompt_ids) if job.sampling.answer_start is None else job.sampling.answer_start
        begun, limit = len(job.prompt_ids) - start, self._limit(job)
        if not begun:
            job.report.extra["forced_answer"] = {"forced": False}
        written: list[int] = []
        cut = begun >= limit  # by a policy outside, which writes the answer in parts
        if not cut:
            async with aclosing(proceed(self._first(job))) as steps:
                async for step in steps:
                    written.append(step.token)
                    cut = step.finish == "length" and self._fits(job, start, written)
                    yield replace(step, finish=None) if cut else step
        if not cut:
            return
        ids = (*job.prompt_ids, *written)
        before, said = ids[: start + limit], ids[start + limit :]
        words = self._words(job, before)
        rest = words[len(said) :] if said == words[: len(said)] else ()
        if not said:
            job.report.extra["forced_answer"] = {"forced": True, "after": len(before) - start}
        if rest:
            forced = () if said else (Decision(self.name, "force"),)
            async with aclosing(given(job, written, rest)) as told:
                async for step in told:
                    yield replace(step, decisions=forced)
                    forced = ()
            written += rest
        text, stream = "", job.writer.tokens.stream()
        async with aclosing(proceed(self._last(job, written))) as steps:
            async for step in steps:
                text += stream.push(step.token)
                ended = text.count(self.until) > (text.count("{") if self.until == "}" else 0)
                yield replace(step, finish="stop") if ended else step
                if ended:
                    return

    def _limit(self, job: Job) -> int:
        """Return the most tokens before the words: all, where there is no room for words and what they announce."""
        sampling, tokens = job.sampling, job.writer.tokens
        longest = (len(tokens.close_think()) if tokens.think else 0) + len(tokens.encode_plain(self.words))
        room = min(sampling.max_tokens // 2, sampling.max_tokens - sampling.min_tokens)
        return sampling.max_tokens - (min(longest + self.tokens, room) if room > longest else 0)

    def _first(self, job: Job) -> Job:
        return replace(job, sampling=replace(job.sampling, max_tokens=self._limit(job)))

    def _fits(self, job: Job, start: int, written: Sequence[int]) -> bool:
        """Return whether the words, and a token behind them, have room."""
        ids = (*job.prompt_ids, *written)
        length = len(ids) + len(self._words(job, ids))
        return length - start < job.sampling.max_tokens and length < job.context_length

    def _words(self, job: Job, ids: Sequence[int]) -> tuple[int, ...]:
        """Encode what stands between a prompt with an answer that was cut off and the answer's end."""
        tokens = job.writer.tokens
        thinking = tokens.think and next((i for i in reversed(ids) if i in tokens.think), None) == tokens.think[0]
        return (*(tokens.close_think() if thinking else ()), *tokens.encode_plain(self.words))

    def _last(self, job: Job, written: Sequence[int]) -> Job:
        """Make the job that goes on behind the words."""
        inner = continuation(job, written, job.engine, max_new=self.tokens)
        sampling = replace(inner.sampling, temperature=job.sampling.temperature, min_tokens=0)
        if self.temperature is not None:
            sampling = replace(sampling, temperature=self.temperature, unset=sampling.unset - {"temperature"})
        return replace(inner, sampling=sampling)
