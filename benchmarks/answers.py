"""Ask the pair questions, in this process or over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from waver.clients.client import AsyncWaver, report, trace
from waver.engines import ModelConfig, TransformersConfig, VllmConfig, load_engine
from waver.engines.base import Engine, Sampling
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.job import UserTurn as Asking
from waver.policies.registry import parse
from waver.policies.report import Report
from waver.policies.services import Services
from waver.resources import MODELS
from waver.retrieval.library import Library
from waver.training.pair.world import Item

SMALL, LARGE = "small", "large"
MAX_TOKENS = 200
"""Enough for the longest answer of the bundled pair."""
AT_ONCE = 64
"""Questions in the air at a time, unless told otherwise."""


@dataclass(frozen=True)
class Prompt:
    """A conversation to answer. `opening` are words that the answer is made to begin with."""

    prompt: str
    opening: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        asked = [{"role": "user", "content": self.prompt}]
        return [*asked, {"role": "assistant", "content": self.opening}] if self.opening else asked


@dataclass(frozen=True)
class Setup:
    """Settings of an answer: the engine, or the policies over the pair."""

    engine: str = SMALL
    policy: tuple[Mapping[str, Any], ...] = ()
    temperature: float = 0.0
    max_tokens: int = MAX_TOKENS
    top_p: float = 1.0


@dataclass(frozen=True)
class Answer:
    """One answer: its text, tokens by engine, switches, tokens thrown away, and each token's entropy in nats.
    `truncation`, `retrieval` and `strategy` are what the report says of them, if they ran; `forced`: the answer had to
    be asked for."""

    text: str
    tokens: Mapping[str, int]
    switches: int
    discarded: int
    entropies: tuple[float, ...]
    truncation: Mapping[str, float] | None = None
    retrieval: Mapping[str, Any] | None = None
    strategy: str | None = None
    forced: bool = False

    @property
    def length(self) -> int:
        return sum(self.tokens.values())

    @property
    def mean_entropy(self) -> float:
        return sum(self.entropies) / len(self.entropies)


class PairInterface(Protocol):
    """The pair behind either interface."""

    small_cost: float
    """Cost of a token of the small engine, in tokens of the large one."""

    async def ask(self, question: Prompt, how: Setup, seed: int) -> Answer: ...


class InProcess:
    """The engines in this process, through the classes that the server uses."""

    def __init__(self, engines: Mapping[str, Engine], library: Library | None = None) -> None:
        self.engines = engines
        self.library = library
        self.small_cost = engines[SMALL].parameters / engines[LARGE].parameters

    async def ask(self, question: Prompt, how: Setup, seed: int) -> Answer:
        policies = parse(how.policy, self.engines)
        tokens = self.engines[how.engine].tokens

        def with_context(words: str) -> list[int]:
            asked, *opening = question.messages
            asked = asked | {"content": words + question.prompt}
            return tokens.chat([asked, *opening], continue_final_message=bool(opening))

        sampling = Sampling(how.temperature, how.top_p, max_tokens=how.max_tokens, seed=seed)
        asked = Asking(question.prompt, with_context)
        job = Job(tuple(with_context("")), sampling, how.engine, Services(self.engines, self.library), Report(), asked)
        stream = self.engines[how.engine].tokens.stream()
        text, entropies = "", []
        async with aclosing(Proceed(policies)(job)) as steps:
            async for step in steps:
                job.report.observe(step)
                text += stream.push(step.token)
                entropies.append(step.entropy)
        done = job.report
        kept = done.truncation.as_dict() if done.truncation.draws else None
        found, strategy = done.extra.get("retrieval"), done.extra.get("strategy")
        forced = done.extra.get("forced_answer", {}).get("forced", False)
        return Answer(text, done.tokens, done.switches, done.discarded, tuple(entropies), kept, found, strategy, forced)


class OverHTTP:
    """A server somewhere, through the official SDK."""

    def __init__(self, client: AsyncWaver, small_cost: float) -> None:
        self.client = client
        self.small_cost = small_cost

    async def ask(self, question: Prompt, how: Setup, seed: int) -> Answer:
        extra: dict[str, Any] = {"trace": True, "policy": [dict(policy) for policy in how.policy]}
        if question.opening:
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        response = await self.client.chat.completions.create(
            model=how.engine,
            messages=question.messages,  # type: ignore[arg-type]
            temperature=how.temperature,
            top_p=how.top_p,
            max_tokens=how.max_tokens,
            seed=seed,
            extra_body=extra,
        )
        done = report(response)
        entropies = tuple(token.entropy for token in done.trace or trace(response.choices[0]))
        text = response.choices[0].message.content or ""
        kept = done.truncation.model_dump() if done.truncation else None
        forced = (done.forced_answer or {}).get("forced", False)
        return Answer(
            text,
            done.tokens,
            done.switches,
            done.discarded_tokens,
            entropies,
            kept,
            done.retrieval,
            done.strategy,
            forced,
        )


@asynccontextmanager
async def load_pair(
    models: Path | None, at_once: int = AT_ONCE, backend: Literal["transformers", "vllm"] = "transformers"
) -> AsyncGenerator[dict[str, Engine], None]:
    """Yield the small and the large engine; closed at the end.

    Raises:
        ValueError: a model cannot be loaded.
    """
    folder = models or MODELS
    engines = {}
    for name in (SMALL, LARGE):
        model = str(folder / name)
        config: ModelConfig = TransformersConfig(model=model, max_sequences=at_once)
        if backend == "vllm":
            config = VllmConfig(backend="vllm", model=model, args={"dtype": "float32", "max_num_seqs": at_once})
        engines[name] = await asyncio.to_thread(load_engine, name, config)
    try:
        yield engines
    finally:
        for engine in engines.values():
            await engine.aclose()


@asynccontextmanager
async def reach(models: Path | None, base_url: str | None, at_once: int) -> AsyncGenerator[PairInterface, None]:
    """Yield the pair in this process, or the server at `base_url`."""
    if base_url is None:
        async with load_pair(models, at_once) as engines:
            yield InProcess(engines)
        return
    async with AsyncWaver(base_url=base_url) as client:
        # What the small engine costs can be read off an answer that it wrote alone, as part of the pair.
        probe = await client.chat.completions.create(
            model=SMALL,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=1,
            extra_body={"policy": [{"name": "random_switch", "rate": 0.0}]},
        )
        yield OverHTTP(client, report(probe).relative_cost)


async def ask_all(
    asked: PairInterface, questions: Sequence[Prompt], how: Setup | Sequence[Setup], at_once: int,
    advance: Callable[[], Any], seed: int = 0,
) -> list[Answer]:  # fmt: skip
    """Return answers to all questions, in one way or each in its own, `at_once` in the air at a time; question i has
    seed `seed + i`. Calls `advance` after each."""
    free = asyncio.Semaphore(at_once)
    hows = [how] * len(questions) if isinstance(how, Setup) else how

    async def one(place: int) -> Answer:
        async with free:
            answer = await asked.ask(questions[place], hows[place], seed + place)
        advance()
        return answer

    return await asyncio.gather(*(one(place) for place in range(len(questions))))


def closed_book(items: Sequence[Item]) -> list[Prompt]:
    return [Prompt(item.prompt) for item in items]
