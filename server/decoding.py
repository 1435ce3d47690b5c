"""Run the choices of one request. Streamed and whole answers are made of the same pieces, so they are equal."""

from __future__ import annotations

import asyncio
import codecs
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeVar

from waver.engines.base import Sampling, Step
from waver.policies.base import Proceed
from waver.policies.job import Job, UserTurn
from waver.policies.report import Report, TruncationStats
from waver.server.assembly import Piece, TextAssembly, Token
from waver.server.runtime import Route, Runtime
from waver.server.sampling import choice_seed

T = TypeVar("T")

ECHO_CHARACTERS = 4096
ECHO_TOKENS = 16


@dataclass(frozen=True)
class Prompt:
    """One prompt; `echo` is its text if it is to be repeated before the answer."""

    ids: tuple[int, ...]
    echo: str | None = None
    question: UserTurn | None = None
    limit: int = 0
    """Most tokens of the answer; the plan sets it."""


@dataclass(frozen=True)
class Plan:
    """What to decode: `n` choices for each prompt. Choices are numbered prompt by prompt."""

    route: Route
    prompts: Sequence[Prompt]
    n: int
    sampling: Sampling
    seed: int
    stops: tuple[str, ...]
    logprobs: bool
    timeout: float

    @property
    def choices(self) -> int:
        return self.n * len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)


class Decoding:
    """The choices of one request being decoded. Leaving the context frees their work in every engine.

    The work runs in a task of its own: a handler that is cancelled, however often, still leaves it to clean up.
    """

    def __init__(self, plan: Plan, runtime: Runtime) -> None:
        self.plan = plan
        self.reports = [self._new_report(plan.route, runtime) for _ in range(plan.choices)]
        self._runtime = runtime
        self._pieces: list[Piece] = []
        self._ended = False
        self._failure: Exception | None = None
        self._admitted = asyncio.Event()
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._began = time.perf_counter()

    @staticmethod
    def _new_report(route: Route, runtime: Runtime) -> Report:
        policy = [policy.model_dump(mode="json") for policy in route.policies]
        return Report(policy=policy, parameters=runtime.parameters(route))

    @property
    def completion_tokens(self) -> int:
        return sum(report.completion_tokens for report in self.reports)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def settle(self, seconds: float) -> None:
        """Wait until the request runs and what fails at once has failed: at most `seconds` after its admission.

        Raises:
            Exception: what went wrong.
        """
        await self._admitted.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()
        if self._failure:
            raise self._failure

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """Everything that is decoded, in the order in which it comes: each time all that waits.

        Raises:
            Exception: what went wrong.
        """
        ended = False
        while not ended:
            await self._moved.wait()
            self._moved.clear()
            ended = self._ended
            batch, self._pieces = self._pieces, []
            yield batch
        if self._failure:
            raise self._failure

    async def aclose(self) -> None:
        """Abort what still runs, and wait until it is gone."""
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self.plan.timeout), self._runtime.admission.slot():
                self._admitted.set()
                async with asyncio.TaskGroup() as group:
                    for number, prompt in enumerate(self.plan.prompts):
                        group.create_task(self._run_prompt(number, prompt))
        except Exception as error:
            self._failure = error
        finally:
            self._count()
            self._admitted.set()
            self._ended = True
            self._moved.set()

    def _put(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._moved.set()

    async def _run_prompt(self, number: int, prompt: Prompt) -> None:
        echoed: list[Piece] = []
        if prompt.echo is not None:
            scores = await self._score(prompt) if self.plan.logprobs else []
            echoed = list(self._echo(prompt.echo, scores))
        async with asyncio.TaskGroup() as group:
            for choice in range(self.plan.n):
                index = number * self.plan.n + choice
                for piece in echoed:
                    self._put(replace(piece, index=index))
                seed = choice_seed(self.plan.seed, choice)
                sampling = replace(self.plan.sampling, max_tokens=prompt.limit, seed=seed)
                group.create_task(self._run_choice(index, prompt, sampling))

    async def _run_choice(self, index: int, prompt: Prompt, sampling: Sampling) -> None:
        route, here, report = self.plan.route, self._runtime, self.reports[index]
        tokens = here.engines[route.engine].tokens
        assembly = TextAssembly(index, tokens, self.plan.stops, len(prompt.echo or ""))
        if sampling.max_tokens == 0:
            self._put(assembly.end("length"))
            return
        job = Job(prompt.ids, sampling, route.engine, here.services, report, prompt.question)
        async with aclosing(Proceed(route.policies)(job)) as steps:
            async for step in steps:
                if not any(each.tokens for each in self.reports):
                    self._runtime.metrics.first_token.observe(time.perf_counter() - self._began)
                report.observe(step)
                # A grammar may also end an answer, with a token that belongs to it.
                silent = step.finish == "stop" and step.token in (*tokens.eos_ids, *sampling.stop_token_ids)
                if not silent:
                    for piece in assembly.push(step):
                        self._put(piece)
                if assembly.stopped:
                    self._put(assembly.end("stop"))
                    return
                if step.finish:
                    for piece in assembly.flush():
                        self._put(piece)
                    self._put(assembly.end("stop" if assembly.stopped else step.finish, step if silent else None))
                    return
        raise RuntimeError(f"the answer of choice {index} ended without a reason")

    async def _score(self, prompt: Prompt) -> list[Step]:
        """A step for each token of the prompt; the first has nothing before it, so its logprob is NaN."""
        engine = self._runtime.engines[self.plan.route.engine]
        if not prompt.ids:
            return []
        first = Step(prompt.ids[0], math.nan, math.nan, engine.name)
        rest = await engine.score(prompt.ids, self.plan.sampling.top_logprobs) if len(prompt.ids) > 1 else []
        return [first, *rest]

    def _echo(self, text: str, steps: Sequence[Step]) -> Iterator[Piece]:
        """The prompt in pieces that are small enough for a line each."""
        tokens = self._runtime.engines[self.plan.route.engine].tokens
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        placed, offset = [], 0
        for step in steps:
            data = tokens.token_bytes(step.token)
            placed.append(Token(step, data, offset))
            offset += len(decoder.decode(data))
        for shown, batch in zip_longest(batched(text, ECHO_CHARACTERS), batched(placed, ECHO_TOKENS), fillvalue=()):
            yield Piece(0, "".join(shown), tuple(batch))

    def _count(self) -> None:
        metrics = self._runtime.metrics
        metrics.prompt_tokens.inc(self.plan.prompt_tokens)
        for report in self.reports:
            metrics.switches.inc(report.switches)
            metrics.discarded.inc(report.discarded)
            for engine, count in report.tokens.items():
                metrics.tokens.labels(engine).inc(count)
            if looked := report.extra.get("retrieval"):
                metrics.looked_up(report.policy, looked)
            if strategy := report.extra.get("strategy"):
                metrics.strategies.labels(strategy).inc()
            if report.extra.get("forced_answer", {}).get("forced"):
                metrics.forced_answers.inc()


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of at most `size` items."""
    return (items[i : i + size] for i in range(0, len(items), size))


def total(reports: Sequence[Report]) -> Report:
    """One report over all choices; what policies added is kept where it is the same for all."""
    first = reports[0]
    tokens: Counter[str] = Counter()
    catch_up: Counter[str] = Counter()
    kept = TruncationStats()
    for report in reports:
        tokens.update(report.tokens)
        catch_up.update(report.catch_up)
        own = report.truncation
        kept.add(own.draws, own.tokens, own.most, own.entropy)
    bounds = [r.bounds_sum or (r.entropy_sum, r.entropy_sum) for r in reports]
    bounded = any(r.bounds_sum for r in reports)
    return Report(
        policy=first.policy,
        parameters=first.parameters,
        tokens=dict(tokens),
        catch_up=dict(catch_up),
        truncation=kept,
        discarded=sum(r.discarded for r in reports),
        switches=sum(r.switches for r in reports),
        extra=first.extra if all(r.extra == first.extra for r in reports) else {},
        entropy_sum=sum(r.entropy_sum for r in reports),
        entropy_max=max(r.entropy_max for r in reports),
        bounds_sum=(sum(b[0] for b in bounds), sum(b[1] for b in bounds)) if bounded else None,
    )
