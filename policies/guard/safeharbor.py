"""SafeHarbor, arXiv 2605.05704: refuse what a rule forbids, and let its harmless neighbours pass.

1. The request is scored: S_harm by a projector, S_benign by the nearest known harmless request (`gate.py`). Where it
   looks harmless and is near what is known to be, it passes as it is: the fast path.
2. Otherwise the rules of the nearest clusters are put before the engine, which decides itself: it answers, or refuses,
   and then calls no tool. `judge: prompt` puts them in front of the question; `judge: verdict` asks in a call of its
   own and leaves the question's prompt as it is.

Scored are the last user message, what it and the turns before it say together, and the arguments and results of tool
calls, each in pieces that the encoder reads whole; the worst piece counts. `answers` also scores the whole answer, tool
calls included, before any of it is sent.

Where the released code departs, the paper is followed: both conditions are needed for the fast path, the retrieved
rules themselves are put before the engine, and nothing tells a model that a check has succeeded. Guards are grown
offline, from reviewed files (`waver train guard`); the one called `starter` is small, and an example.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Literal

from pydantic import Field

from waver.engines.base import NO_TOKEN, Step, Unsupported
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.guard import judging
from waver.policies.guard.gate import verdict
from waver.policies.guard.memory import Guard, Rule
from waver.policies.helpers import ask, say
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.retrieve.quoting import quoted_job
from waver.tracing import span

REFUSAL = "I cannot help with that."
VERDICT_TOKENS = 4
PIECE, OVERLAP, MOST_PIECES = 800, 200, 256
"""Characters of a piece, how many it shares with the next, and how many pieces are scored; a longer request is
checked whatever they say."""


class SafeHarbor(Policy):
    """Refuse what rules forbid."""

    stage: ClassVar[Stage] = "guard"
    paper: ClassVar[str] = "arXiv 2605.05704"
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_guarded", "Requests that passed at once, were checked, or were refused.", ("outcome",)),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "guard": "the outcome, the scores, the categories of the rules that were put before the engine, and seconds",
    }

    name: Literal["safeharbor"] = "safeharbor"
    guard: str = Field(default="starter", description="guard of the configuration, or the starter set")
    low: float | None = Field(default=None, ge=0.0, le=1.0, description="S_harm below which a request may pass at once")
    high: float | None = Field(
        default=None, ge=-1.0, le=1.0, description="S_benign above which a request may pass at once"
    )
    rules: int = Field(default=3, ge=1, le=16, description="clusters whose rules are put before the engine")
    judge: Literal["prompt", "verdict"] = Field(
        default="prompt", description="rules in front of the question, or in a call of their own"
    )
    turns: int = Field(default=3, ge=1, le=32, description="last turns that are also scored together")
    answers: bool = Field(default=False, description="also judge the answer, which is then sent as a whole")
    refusal: str = Field(default=REFUSAL, max_length=4096, description="what is said instead")

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        record = report.extra.get("guard")
        return () if record is None else (("waver_guarded", (record["outcome"],)),)

    async def check(self, job: Job) -> None:
        guard, embedder = self._guard(job), job.services.embedder
        if job.question is None:
            raise Unsupported("a guard reads the request: send a user's message, or a prompt as text")
        if embedder is None:
            raise Unsupported("there is no embedder here")
        library = job.services.library
        assert library is not None
        if not embedder.loaded:
            await library.compute(lambda: embedder.model)
        if embedder.fingerprint != guard.record.fingerprint:
            raise Unsupported(
                f"the guard {self.guard!r} was made with the embedder {guard.record.embedder!r}; the configuration's "
                "first one is another",
                "guard",
            )

    def _guard(self, job: Job) -> Guard:
        found = job.services.guards.get(self.guard)
        if found is None:
            known = ", ".join(job.services.guards) or "none"
            raise Unsupported(f"unknown guard {self.guard[:64]!r}; there are {known}", "guard")
        return found

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        began, guard = time.perf_counter(), self._guard(job)
        record: dict[str, Any] = {"outcome": "passed", "rules": []}
        job.report.extra["guard"] = record
        with span("guard", {"waver.guard": self.guard}) as judging:
            rules = await self._rules(job, guard, spoken(job, self.turns), record)
            judging.note("waver.outcome", record["outcome"])
        run = self._answered(job, proceed, rules, record)
        record["seconds"] = time.perf_counter() - began
        steps = self._judged(job, run, guard, record) if self.answers else run
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def _rules(self, job: Job, guard: Guard, texts: Sequence[str], record: dict[str, Any]) -> list[Rule]:
        """Return the rules that texts are to be compared with; none where they pass at once. Fills the scores in."""
        library, embedder = job.services.library, job.services.embedder
        assert library is not None
        assert embedder is not None
        parts = pieces(texts)
        if not parts:
            return []
        vectors = await library.compute(embedder.embed, parts[:MOST_PIECES], quick=True)
        harm, benign = guard.scores(vectors)
        record |= {"harm": harm, "benign": benign}
        low = guard.record.low if self.low is None else self.low
        high = guard.record.high if self.high is None else self.high
        if len(parts) <= MOST_PIECES and verdict(harm, benign, low, high):
            return []
        found = guard.nearest(vectors, self.rules)
        record |= {"outcome": "checked", "rules": [rule.category for rule in found]}
        return found

    async def _answered(
        self, job: Job, proceed: Proceed, rules: Sequence[Rule], record: dict[str, Any]
    ) -> AsyncGenerator[Step, None]:
        """Yield the answer as it would be, or as the engine decides with the rules before it."""
        inner, refused = job, False
        if rules and self.judge == "verdict":
            refused = await self._forbids(job, "\n".join(spoken(job, self.turns)), rules)
        elif rules:
            inner, count = await quoted_job(job, judging.lines(rules), judging.PROMPT)
            refused = not count  # there is no room for them
        if not refused:
            held = Held(job, deciding=inner is not job)
            async with aclosing(proceed(inner)) as steps:
                async for step in steps:
                    for ready in held.release(step):
                        yield ready
                    if held.refused:
                        break
            refused = held.refused
        if refused:
            async for step in self._refusal(job, record):
                yield step

    async def _judged(
        self, job: Job, steps: AsyncGenerator[Step, None], guard: Guard, record: dict[str, Any]
    ) -> AsyncGenerator[Step, None]:
        """Yield an answer once the whole of it has passed, or a refusal in its place."""
        made = [step async for step in steps]
        if record["outcome"] != "refused":
            text = text_of(job, made)
            found: dict[str, Any] = {"outcome": "passed", "rules": []}
            rules = await self._rules(job, guard, [text], found)
            record["answer"] = {key: value for key, value in found.items() if key != "outcome"}
            if rules and await self._forbids(job, text, rules):
                job.report.discarded += sum(each.token != NO_TOKEN for each in made)
                async for step in self._refusal(job, record):
                    yield step
                return
        for step in made:
            yield step

    async def _forbids(self, job: Job, text: str, rules: Sequence[Rule]) -> bool:
        """Return whether the engine says that a text falls under a rule."""
        content = judging.verdict_prompt(text, rules)
        return judging.refuses(await ask(job, [{"role": "user", "content": content}], VERDICT_TOKENS))

    async def _refusal(self, job: Job, record: dict[str, Any]) -> AsyncGenerator[Step, None]:
        record["outcome"] = "refused"
        async for step in say(job, self.refusal, "content_filter", self.name):
            yield step


class Held:
    """The first steps of an answer, held back until it is clear whether they are a refusal."""

    def __init__(self, job: Job, deciding: bool) -> None:
        """Hold nothing back unless `deciding`."""
        self._job, self._deciding = job, deciding
        self._steps: list[Step] = []
        self.refused = False

    def release(self, step: Step) -> list[Step]:
        """Take a step in; return those that may be sent. Sets `refused` where they are a refusal, which counts as
        discarded."""
        if not self._deciding:
            return [step]
        self._steps.append(step)
        refusal = judging.may_refuse(text_of(self._job, self._steps))
        if refusal:
            self.refused = True
            self._job.report.discarded += sum(each.token != NO_TOKEN for each in self._steps)
            return []
        if refusal is None and not step.finish:
            return []
        self._deciding = False
        return self._steps


def spoken(job: Job, turns: int) -> list[str]:
    """Return the texts of a request that are scored: the last user message, the last turns together, and the arguments
    and results of tool calls since the last user message."""
    question = job.question.text if job.question is not None else ""
    texts = [question]
    contents = [str(message.get("content") or "") for message in job.messages if message.get("role") != "system"]
    if len(contents) > 1:
        texts.append("\n".join(contents[-turns:]))
    for message in job.messages:
        calls = message.get("tool_calls") or ()
        texts += [str(call.get("function", {}).get("arguments", "")) for call in calls if isinstance(call, Mapping)]
        if message.get("role") in ("tool", "function"):
            texts.append(str(message.get("content") or ""))
    return [text for text in dict.fromkeys(texts) if text.strip()]


def pieces(texts: Sequence[str]) -> list[str]:
    """Cut texts into overlapping pieces that an encoder reads whole."""
    step = PIECE - OVERLAP
    return [
        piece
        for text in texts
        for start in range(0, max(len(text) - OVERLAP, 1), step)
        if (piece := text[start : start + PIECE]).strip()
    ]


def text_of(job: Job, steps: Sequence[Step]) -> str:
    """Return what steps say."""
    return job.writer.tokens.decode([step.token for step in steps if step.token != NO_TOKEN])
