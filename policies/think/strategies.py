"""Ways to think, as DiffAdapt (arXiv 2510.19669) has them: words that open the answer, how to draw, and how long.

The words are ours; temperature, top_p and the share of `max_tokens` are the paper's. For a model with think tags they
stand in its think block, which an easy question finds closed again: no thinking. For others they are an instruction.
They are tokens of the prompt, behind all that a client sent, and are not counted as its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from waver.engines.base import ContextExceeded, Unsupported
from waver.engines.tokens import TokenText
from waver.policies.job import Job

Words = Annotated[str, Field(max_length=4096, description="words that open the answer")]
Think = Annotated[bool, Field(description="leave the think block open, where the model has one")]
Temperature = Annotated[float | None, Field(ge=0.0, le=2.0, description="null: the request's own")]
TopP = Annotated[float | None, Field(gt=0.0, le=1.0, description="null: the request's own")]
Share = Annotated[float, Field(gt=0.0, le=1.0, description="share of the request's max_tokens")]


class Strategy(BaseModel):
    """One way to think."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    words: Words
    think: Think = True
    temperature: Temperature = None
    top_p: TopP = None
    share: Share = 1.0


class Easy(Strategy):
    """Answer without thinking."""

    words: Words = "Simple task: answer now, verify once."
    think: Think = False
    temperature: Temperature = 0.5
    share: Share = 0.4


class Normal(Strategy):
    """Think in order, step by step."""

    words: Words = "Work through it in order, one step at a time."
    temperature: Temperature = 0.8
    top_p: TopP = 0.95


class Hard(Strategy):
    """Fail fast: on such questions more tokens rarely help."""

    words: Words = "Complex task: sketch the key route only, keep it short."
    temperature: Temperature = 0.4
    share: Share = 0.5


def asked(job: Job, strategy: Strategy) -> Job:
    """Make the job that thinks in this way.

    Raises:
        Unsupported: no room is left for an answer, or the answer has been begun already.
    """
    if job.question is not None and not job.question.opens:
        raise Unsupported(
            "a strategy's words open the answer: leave out continue_final_message, and let the prompt end where the "
            "answer begins",
            "policy",
        )
    words, own = opening(job.writer.tokens, job.prompt_ids, strategy), job.sampling
    ids = (*job.prompt_ids, *words)
    room = job.context_length - len(ids)
    if room < max(own.min_tokens, 1):
        found = f"the prompt has {len(job.prompt_ids)} tokens and the strategy's words {len(words)}"
        raise ContextExceeded(job.context_length, found, "policy")
    limit = max(int(strategy.share * own.max_tokens), own.min_tokens, 1)
    sampling = replace(
        own,
        temperature=own.temperature if strategy.temperature is None else strategy.temperature,
        top_p=own.top_p if strategy.top_p is None else strategy.top_p,
        unset=own.unset - {name for name in ("temperature", "top_p") if getattr(strategy, name) is not None},
        max_tokens=min(limit, room),
    )
    question = job.question and replace(job.question, with_context=_followed_by(job.question.with_context, words))
    return replace(job, prompt_ids=ids, sampling=sampling, question=question)


def opening(tokens: TokenText, prompt_ids: Sequence[int], strategy: Strategy) -> tuple[int, ...]:
    """Encode a strategy's words behind a prompt, with the think tags that they need there: a template may have opened
    the block already. One that has closed it (a client switched thinking off) leaves the words alone."""
    words = strategy.words
    if tokens.think is None:
        return tuple(tokens.encode_plain(words))
    opens, closes = tokens.think
    last = next((i for i in reversed(prompt_ids) if tokens.is_special(i) or tokens.token_str(i).strip()), None)
    if last == closes:
        return tuple(tokens.encode_plain(words))
    begun = tokens.encode_plain(words if last == opens else f"\n{words}")
    front = begun if last == opens else [opens, *begun]
    if strategy.think:
        return tuple(front)
    return (*front, *tokens.close_think())


def _followed_by(with_context: Callable[[str], Sequence[int]], words: Sequence[int]) -> Callable[[str], Sequence[int]]:
    """Let prompts that are made anew, as around passages, end with the same words."""
    return lambda before: (*with_context(before), *words)
