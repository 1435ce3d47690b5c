"""A budget for thinking: a think block that has used it up is ended, and the answer follows (after Qwen3, arXiv
2505.09388, section 4.3).

Where the block of an answer has `tokens` tokens, `words` and the closing tag are appended, and the model writes on.

Details:
- The words and the tag are tokens of the answer, counted and shown like all others, with the entropies that the model
  has for them. The engine must be able to score a given text.
- A block that the prompt has opened counts from the answer's first token; with a budget of 0 it is closed at once.
- Where `max_tokens` leaves no room for the words and a token behind them, nothing is done.
- The first block of an answer is watched; a model with think tags writes one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import ClassVar, Literal

from pydantic import Field

from waver.engines.base import NO_TOKEN, Step, Unsupported
from waver.engines.tokens import TokenText
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job, continuation
from waver.policies.think.given_words import check_scoring, given


class ThinkBudget(Policy):
    """End a think block that has used up its budget, and let the answer follow."""

    stage: ClassVar[Stage] = "finish"
    paper: ClassVar[str] = "arXiv 2505.09388"
    report_keys: ClassVar[Mapping[str, str]] = {
        "think_budget": "whether the think block was ended, and after how many tokens of the answer",
    }

    name: Literal["think_budget"] = "think_budget"
    tokens: int = Field(default=1024, ge=0, lt=2**31, description="most tokens of the think block")
    words: str = Field(
        default="\n\nConsidering the limited time by the user, I have to give the solution based on the thinking "
        "directly now.",
        max_length=1024,
        description="what ends the thinking, in front of the closing tag",
    )

    async def check(self, job: Job) -> None:
        if job.writer.tokens.think is None:
            raise Unsupported(
                f"a budget for thinking needs a model with the tokens <think> and </think>, which engine "
                f"{job.engine!r} has not",
                "policy",
            )
        await check_scoring(job, "</think>", self.name)

    def possible_jobs(self, job: Job) -> list[Job]:
        return [job, continuation(job, job.prompt_ids[-1:], job.engine)]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        tokens = job.writer.tokens
        assert tokens.think is not None
        start = len(job.prompt_ids) if job.sampling.answer_start is None else job.sampling.answer_start
        written: list[int] = []
        used = _used(job.prompt_ids, start, tokens)
        words = [*tokens.encode_plain(self.words), *tokens.close_think()]
        over = self._over(job, start, len(written) + len(words), used)
        job.report.extra.setdefault("think_budget", {"ended": False})
        if not over:
            async with aclosing(proceed(job)) as steps:
                async for step in steps:
                    if step.token != NO_TOKEN:
                        written.append(step.token)
                    if step.token == tokens.think[0] and used is None:
                        used = 0
                    elif step.token == tokens.think[1]:
                        used = -1
                    elif used is not None and used >= 0:
                        used += 1
                    yield step
                    if step.finish:
                        return
                    if over := self._over(job, start, len(written) + len(words), used):
                        break
        job.report.extra["think_budget"] = {"ended": over, "after": len(job.prompt_ids) + len(written) - start}
        async with aclosing(given(job, written, words)) as said:
            async for step in said:
                yield step
        async with aclosing(proceed(continuation(job, [*written, *words], job.engine))) as steps:
            async for step in steps:
                yield step

    def _over(self, job: Job, start: int, ended: int, used: int | None) -> bool:
        """Return whether the block has used up its budget, and there is room for the `ended` tokens of an answer whose
        block is ended now."""
        if used is None or used < self.tokens or used < 0:
            return False
        length = len(job.prompt_ids) + ended
        return length - start < job.sampling.max_tokens and length < job.context_length


def _used(prompt_ids: Sequence[int], start: int, tokens: TokenText) -> int | None:
    """Count the tokens of an answer's open think block; None where none is open."""
    if not tokens.in_think(prompt_ids):
        return None
    assert tokens.think is not None
    opened = len(prompt_ids) - 1 - list(reversed(prompt_ids)).index(tokens.think[0])
    return len(prompt_ids) - max(opened + 1, start)
