"""Decode the choices of one request. Streams and single objects are built from the same pieces, so they are equal."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace

from waver.engines.base import NO_TOKEN, Finish, Sampling, Step, Unsupported
from waver.policies.answer import Answer, Ending
from waver.policies.base import Proceed
from waver.policies.job import Caller, Job
from waver.policies.report import Report
from waver.retrieval.base import RetrievalError
from waver.server.accounting import Account
from waver.server.assembly import Piece, TextAssembly
from waver.server.echo import echo, score
from waver.server.message.reading import Reading
from waver.server.planned import Plan, Prompt
from waver.server.routing import Route
from waver.server.runtime import Runtime
from waver.server.sampling import choice_seed
from waver.server.tenants.meter import Hold, current_hold

_ENDINGS: dict[Finish, Ending] = {"length": "length", "content_filter": "content_filter"}
"""Endings by finish reason, for answers that the model did not end itself."""

BATCH = 1024
"""Tokens and log-probabilities that are shaped and written at a time, in some milliseconds."""
BACKLOG = 65_536
"""And those that wait for a client to read them before decoding waits, too."""


@dataclass
class _Record:
    """Result of one choice: the text and tokens that were sent to the client, and how it ended."""

    reading: Reading | None = None
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    ending: Ending = "failed"

    def answer(self) -> Answer:
        return Answer("".join(self.text), tuple(self.tokens), self.ending)


def new_job(runtime: Runtime, route: Route, prompt: Prompt, sampling: Sampling, report: Report, caller: Caller) -> Job:
    """Make the job that the policies of one choice receive; what engines compute for it is counted in the report."""
    report.prompt_tokens = len(prompt.ids)
    engines = report.meter.engines(runtime.engines)
    report.step_seconds = runtime.step_times.step.get(report.meter.largest[0])
    return Job(
        prompt.ids,
        sampling,
        route.engine,
        replace(runtime.services, engines=engines),
        report,
        question=prompt.question,
        messages=prompt.messages,
        caller=caller,
    )


def new_report(runtime: Runtime, route: Route) -> Report:
    """Make the empty report of one choice."""
    policy = [policy.model_dump(mode="json") for policy in route.policies]
    return Report(policy=policy, parameters=runtime.parameters(route))


class Decoding:
    """Decoding of all choices of one request.

    The work runs in a task of its own: a handler that is cancelled, however often, still leaves it to clean up.
    """

    def __init__(self, plan: Plan, runtime: Runtime) -> None:
        self.plan = plan
        self.reports = [new_report(runtime, plan.route) for _ in range(plan.choices)]
        self._runtime = runtime
        self._readings: list[Reading] = []
        self._pieces: deque[Piece] = deque()
        self._backlog = 0
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._ended = False
        self._left = False
        self._failure: Exception | None = None
        self._admitted = asyncio.Event()
        self._moved = asyncio.Event()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._account = Account(runtime, plan)
        self._hold = current_hold()
        self._begun = False
        """True once the prompts are read, and charged."""

    @property
    def completion_tokens(self) -> int:
        return sum(report.completion_tokens for report in self.reports)

    @property
    def reasoning_tokens(self) -> int:
        return sum(reading.reasoning_tokens for reading in self._readings)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())
        if self._hold is not None:
            self._hold.keep()
            self._task.add_done_callback(self._let_go)
        self._runtime.answers.add(self.cut)

    async def settle(self, seconds: float) -> None:
        """Wait until the request runs, and then for its first token or its failure, at most so many seconds.

        Raises:
            Exception: what went wrong.
        """
        await self._admitted.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._settled.wait()
        if self._failure:
            raise self._failure

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """Yield the pieces in the order in which they are decoded; each batch holds all that are ready, up to `BATCH`.

        Raises:
            Exception: what went wrong.
        """
        while True:
            await self._moved.wait()
            batch, weight = [], 0
            while self._pieces and weight < BATCH:
                batch.append(self._pieces.popleft())
                weight += self._weight(batch[-1])
            self._backlog -= weight
            if self._backlog < BACKLOG:
                self._roomy.set()
            ended = self._ended and not self._pieces
            if not self._pieces and not ended:
                self._moved.clear()
            yield batch
            if ended:
                break
            await asyncio.sleep(0)
        if self._failure:
            raise self._failure

    def cut(self, error: Exception) -> None:
        """End the answer here with an error."""
        if self._task is not None and not self._ended:
            self._failure = error
            self._task.cancel()

    async def aclose(self) -> None:
        """Abort what still runs, and wait until it is gone."""
        if self._task:
            self._left = not self._ended
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self.plan.timeout):
                if self._hold is not None:
                    await self._reserve(self._hold)
                async with self._runtime.admission.slot():
                    self._admitted.set()
                    self._account.admitted()
                    self._begun = True
                    if self._hold is not None:
                        self._hold.used += self.plan.prompt_tokens
                    async with asyncio.TaskGroup() as group:
                        for number, prompt in enumerate(self.plan.prompts):
                            group.create_task(self._run_prompt(number, prompt))
        except Exception as error:
            self._failure = error
        finally:
            self._count()
            self._admitted.set()
            self._settled.set()
            self._ended = True
            self._runtime.answers.discard(self.cut)
            self._moved.set()

    async def _reserve(self, hold: Hold) -> None:
        """Reserve the tokens of the prompts and the answers. Where the request does not say how many an answer may
        have, or the key wants it so, answers are cut to what is left of the budget.

        Raises:
            APIError: 429, that is not enough.
        """
        plan = self.plan
        need = plan.prompt_tokens + plan.n * sum(prompt.limit for prompt in plan.prompts)
        least = plan.prompt_tokens + plan.choices * max(plan.sampling.min_tokens, 1)
        may_cut = hold.grant.cut_answers or not plan.limited
        given = await hold.reserve(need, min(least, need) if may_cut else need)
        if given < need:
            share = (given - plan.prompt_tokens) // plan.choices
            prompts = [replace(prompt, limit=min(prompt.limit, share)) for prompt in plan.prompts]
            self.plan = replace(plan, prompts=prompts)
            for report in self.reports:
                report.extra["token_budget"] = share

    def _let_go(self, _: asyncio.Task[None]) -> None:
        """Charge what policies read and drew besides the answers, and nothing where an engine failed before it had
        begun."""
        if self._hold is not None:
            besides = sum(report.besides for report in self.reports)
            self._hold.used += besides
            if self._failure is not None and self._begun and not besides and not self.completion_tokens:
                self._hold.used -= self.plan.prompt_tokens
            self._hold.let_go()

    def _put(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._backlog += self._weight(piece)
        if self._backlog >= BACKLOG:
            self._roomy.clear()
        self._moved.set()

    def _weight(self, piece: Piece) -> int:
        """Return the size of a piece: its tokens and their alternatives."""
        return 1 + max(len(piece.tokens), len(piece.traced)) * (1 + self.plan.sampling.top_logprobs)

    async def _run_prompt(self, number: int, prompt: Prompt) -> None:
        echoed: list[Piece] = []
        if prompt.echo is not None:
            engine = self._runtime.engines[self.plan.route.engine]
            wanted = self.plan.logprobs
            scores = await score(prompt.ids, engine, self.plan.sampling.top_logprobs) if wanted else []
            echoed = await self._runtime.shaping.run(lambda: list(echo(prompt.echo or "", scores, engine.tokens)))
        async with asyncio.TaskGroup() as group:
            for choice in range(self.plan.n):
                index = number * self.plan.n + choice
                for piece in echoed:
                    await self._roomy.wait()
                    self._put(replace(piece, index=index))
                seed = choice_seed(self.plan.seed, choice)
                sampling = prompt.sampled(self.plan.sampling, seed)
                group.create_task(self._run_choice(index, prompt, sampling))

    async def _run_choice(self, index: int, prompt: Prompt, sampling: Sampling) -> None:
        route, here, report = self.plan.route, self._runtime, self.reports[index]
        tokens = here.engines[route.engine].tokens
        assembly = TextAssembly(index, tokens, self.plan.stops, len(prompt.echo or ""), self.plan.include_stop)
        if sampling.max_tokens == 0:
            self._account.finish(index, "length")
            self._put(assembly.end("length"))
            return
        job = replace(new_job(here, route, prompt, sampling, report, self.plan.caller), shared=self.plan.shared)
        record = _Record(self._reading(route))
        try:
            async with aclosing(Proceed(route.policies)(job)) as steps:
                async for step in steps:
                    if not self._roomy.is_set():  # a client that reads slowly
                        await self._roomy.wait()
                    pieces = self._next(step, job, assembly, record)
                    for piece in pieces if record.reading is None else self._read(pieces, record, report):
                        self._put(piece)
                    if record.finish:
                        return
            raise RuntimeError(f"the answer of choice {index} ended without a reason")
        except asyncio.CancelledError:
            record.ending = "client_gone" if self._left else "failed"
            raise
        except Exception as error:
            refused = isinstance(error, Unsupported | RetrievalError) and not record.tokens
            record.ending = "refused" if refused else "failed"
            raise
        finally:
            here.after_hooks.begin(route.policies, job, record.answer())

    def _next(self, step: Step, job: Job, assembly: TextAssembly, record: _Record) -> list[Piece]:
        """Make the pieces that a step adds to its choice; sets `record.finish` where the answer ends with it."""
        if record.reading is not None and not record.tokens and job.report.think_open is not None:
            record.reading.begin(job.report.think_open)
        if step.prompt_tokens is not None:
            self._count_prompt(assembly.index // self.plan.n, step.prompt_tokens)
            job.report.prompt_tokens = step.prompt_tokens
        silent = step.token == NO_TOKEN
        pieces: list[Piece] = []
        if not silent:
            if not any(each.tokens for each in self.reports):
                self._settled.set()
            self._account.token(assembly.index, step)
            job.report.observe(step)
            if self._hold is not None:
                self._hold.used += 1
            record.tokens.append(step.token)
            # A grammar may also end an answer, with a token that belongs to it.
            silent = step.finish == "stop" and step.token in (*job.writer.tokens.eos_ids, *job.sampling.stop_token_ids)
            pieces += [] if silent else assembly.push(step)
        if step.finish and not assembly.stopped:
            pieces += assembly.flush()
        if assembly.stopped:
            record.finish, record.ending = "stop", "stop_string"
        elif step.finish:
            record.finish, record.ending = step.finish, _ENDINGS.get(step.finish, "stop")
        record.text += (texts := [piece.text for piece in pieces])
        self._account.text(assembly.index, "".join(texts))
        if record.finish:
            self._account.finish(assembly.index, record.finish)
            last = step if silent and step.token != NO_TOKEN else None
            pieces.append(assembly.end(record.finish, last, job.sampling.stop_token_ids))
        return pieces

    def _count_prompt(self, number: int, tokens: int) -> None:
        """Take the length of a prompt from who read it, and charge what it is more."""
        before = self.plan.prompt_tokens
        prompts = list(self.plan.prompts)
        prompts[number] = replace(prompts[number], counted=tokens)
        self.plan = replace(self.plan, prompts=prompts)
        self._account.plan = self.plan
        if self._hold is not None:
            self._hold.used += self.plan.prompt_tokens - before

    def _reading(self, route: Route) -> Reading | None:
        """Begin to read a choice as a message, if it is one."""
        if self.plan.message is None:
            return None
        reading = Reading(self.plan.message, self._runtime.engines[route.engine].tokens)
        self._readings.append(reading)
        return reading

    def _read(self, pieces: list[Piece], record: _Record, report: Report) -> Iterator[Piece]:
        """Give pieces the parts that they add to a message; ends the choice where the message is complete."""
        reading = record.reading
        assert reading is not None
        for piece in pieces:
            if piece.finish is None:
                yield reading.push(piece)
        if reading.done and record.finish is None:
            record.finish, record.ending = "stop", "stop"
            pieces = [Piece(pieces[-1].index, finish="stop")]
        if record.finish is not None:
            parts, reason = reading.finish(record.finish)
            if reading.broken:
                report.extra["broken_tool_calls"] = reading.broken
            if parts:
                yield Piece(pieces[-1].index, parts=parts)
            self._account.finish(pieces[-1].index, reason)
            yield replace(pieces[-1], finish=reason)

    def _count(self) -> None:
        self._account.close(self.reports, self._left)
        metrics, key = self._runtime.metrics, self.plan.caller.key
        if key is not None:
            written, thrown = self.completion_tokens, sum(report.discarded for report in self.reports)
            prompts = self.plan.prompt_tokens if self._begun else 0
            read = sum(report.besides for report in self.reports) - thrown
            metrics.count_tokens(key, prompt=prompts, completion=written, discarded=thrown, read=read)
        metrics.prompt_tokens.inc(self.plan.prompt_tokens)
        for report in self.reports:
            self._runtime.step_times.observe(report.meter)
            metrics.switches.inc(report.switches)
            metrics.discarded.inc(report.discarded)
            for engine, count in report.tokens.items():
                metrics.tokens.labels(engine).inc(count)
            for engine, count in report.meter.gates.items():
                metrics.gates.labels(engine).inc(count)
            if looked := report.extra.get("retrieval"):
                metrics.observe_gate(report.policy, looked)
            metrics.count(self.plan.route.policies, report)
