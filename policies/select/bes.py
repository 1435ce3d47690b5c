"""BES, arXiv 2605.28814: search for an answer by expanding and recombining partial ones, guided by goals.

Forward, partial answers are grown by the model, and recombined without it (`waver.evolution`); backward, the question
is split into goals that a text can be checked for (`waver.goals`), so that a partial answer has a score. A step ends
with `delimiter`. The first answer that is whole and meets all goals is given. Where a budget ends before, the best one
so far is given, and the report says so; one that is not whole is written to its end.

Goals are read from the question by a template (`sums`, `knights`), without its solution, are patterns of the request
(`regex`), or are what a `verifier` of the configuration tells (`waver.policies.select.verifiers`): no request brings
code. `propose` names an engine that splits the question into sub-questions, which are goals as well, or the only ones
(`waver.policies.select.proposals`). `method` has the baselines at the same budget: `tree` expands only, `best_of_n`
draws whole answers.

Steps cross as token ids, and are never tokenised anew. The log-probability of a token that was moved is that where it
was drawn.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import structlog
from pydantic import Field, model_validator

from waver.engines.base import NO_TOKEN, EngineError, Step, Unsupported
from waver.evolution import SOLVED, Method, Node, Plan, Search
from waver.goals import Goal, NotJudged, Task, Verdict, knights_task, regex_task, sum_task
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.budget import Budget, Ledger, OutOfTokens, budget_of
from waver.policies.helpers import sub_job
from waver.policies.job import Job, continuation
from waver.policies.report import Report
from waver.policies.select.proposals import propose, with_proposals

log = structlog.get_logger("waver")
Part = tuple[int, ...]
"""The token ids of a step."""
SHOWN = 200
"""Nodes of the tree that a report has."""
END = 120
"""Characters at the end of a node's text that a report has."""


class OutOfTime(Exception):
    """The seconds of a search are over."""


class BES(Policy):
    """Search for an answer that meets checkable goals, by growing and recombining partial ones."""

    stage: ClassVar[Stage] = "search"
    paper: ClassVar[str] = "arXiv 2605.28814"
    evaluation: ClassVar[Mapping[str, tuple[str, ...]]] = {"method": ("tree", "best_of_n")}
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_searches", "Answers that were searched for, by how the search ended.", ("ended",)),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "search": "how the search ended (`solved`, `iterations`, `tokens`, `seconds`, `extra_tokens`, `verifier`), "
        "whether what is given is the best so far only, the goals, the tree with how each node was made "
        "and how its text ends, the calls, tokens and seconds",
    }

    name: Literal["bes"] = "bes"
    task: Literal["auto", "sums", "knights", "regex"] = Field(
        default="auto",
        description="what reads goals from the question; auto: whichever can, `regex` where goals are given",
    )
    goals: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=32)] = Field(
        default=[], description="patterns that the answer has to contain"
    )
    verifier: str | None = Field(
        default=None, description="a verifier of the configuration that tells which goals an answer meets"
    )
    propose: str | None = Field(
        default=None, description="an engine that splits the question into sub-questions, as goals"
    )
    proposed: int = Field(default=4, ge=1, le=16, description="most sub-questions")
    method: Method = Field(default="bes", description="bidirectional search, or a baseline")
    iterations: int = Field(default=50, ge=1, le=1000, description="most iterations (B)")
    tokens: int = Field(default=4096, ge=1, le=262144, description="most tokens that are drawn for the search")
    seconds: float | None = Field(default=None, gt=0.0, description="most seconds of the search")
    temperature: float = Field(default=0.6, gt=0.0, le=2.0, description="at which steps are drawn")
    top_p: float = Field(default=0.95, gt=0.0, le=1.0, description="of the tokens that steps are drawn from")
    delimiter: str = Field(default="\n\n", min_length=1, max_length=16, description="end of a step")
    expand: int = Field(default=5, ge=1, le=32, description="most steps of one expansion (K_max)")
    longest: int = Field(default=12, ge=2, le=64, description="most steps of an answer; then it is finished greedily")
    hot: float = Field(default=2.0, gt=0.0, description="temperature of the selection at the beginning (tau_0)")
    cold: float = Field(default=1.0, gt=0.0, description="temperature of the selection at the end (tau_1)")

    @model_validator(mode="after")
    def _check_goals(self) -> BES:
        if self.task != "auto" and (self.task == "regex") != bool(self.goals):
            raise ValueError("goals are patterns for the task regex, which needs some.")
        if self.verifier is not None and (self.goals or self.task != "auto"):
            raise ValueError("a verifier brings the goals of its own: leave out task and goals.")
        if self.goals:
            regex_task(self.goals)
        return self

    @property
    def helping_engines(self) -> tuple[str, ...]:
        return () if self.propose is None else (self.propose,)

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        record = report.extra.get("search")
        return () if record is None else (("waver_searches", (record["ended"],)),)

    async def check(self, job: Job) -> None:
        if job.sampling.grammar is not None:
            raise Unsupported("bes recombines parts of answers, which then need not follow a response_format or a tool")
        if any(each.get("name") == "l_rag" for each in job.report.policy):
            raise Unsupported("bes and l_rag cannot stand together: an expansion goes on in the middle of an answer")
        await self._task(job)

    async def _task(self, job: Job) -> Task | None:
        """Read the goals; None where an engine shall propose them and there are no others.

        Raises:
            Unsupported: the question has none of the task's kind. EngineError: the verifier fails.
        """
        if job.question is None and not (self.goals and self.propose is None):
            raise Unsupported("the goals are read from the question: send a user's message, or a prompt as text")
        if self.goals:
            return regex_task(self.goals)
        assert job.question is not None
        if self.verifier is not None:
            return await self._verified(job, job.question.text)
        reasons = []
        for name, read in (("knights", knights_task), ("sums", sum_task)):
            if self.task not in ("auto", name):
                continue
            try:
                return read(job.question.text)
            except ValueError as error:
                reasons.append(str(error))
        if self.propose is not None and self.task == "auto":
            return None
        raise Unsupported("; ".join(reasons), "task")

    async def _verified(self, job: Job, question: str) -> Task:
        """Return the goals that the verifier has for a question.

        Raises:
            Unsupported: there is no such verifier, or it has none. EngineError: it fails.
        """
        assert self.verifier is not None
        found = job.services.verifiers.get(self.verifier)
        if found is None:
            there = ", ".join(job.services.verifiers) or "none"
            raise Unsupported(f"unknown verifier {self.verifier[:64]!r}; there are {there}", "verifier")
        try:
            return await found.task(question)
        except NotJudged as failed:
            raise EngineError(str(failed), failed.detail) from failed
        except ValueError as error:
            raise Unsupported(f"the verifier {self.verifier!r} cannot be used: {error}", "verifier") from error

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        began = time.monotonic()
        rng = random.Random(f"bes:{job.sampling.seed}")
        plan = Plan(self.method, self.iterations, self.hot, self.cold, self.expand, self.longest)
        until = None if self.seconds is None else began + self.seconds
        own, nothing = await self._task(job), Task(Goal(0), ("all",), _no_goals)
        writing = Writing(self, job, proceed, own or nothing, Budget(self.tokens), budget_of(job), until, rng)
        search: Search[Part] = Search(writing, plan, rng)
        ended, failure = "iterations", None
        try:
            if self.propose is not None:
                budgets = (writing.shared, writing.budget)
                words = await propose(job, self.propose, self.proposed, rng.getrandbits(32), writing.ledger, budgets)
                writing.task = with_proposals(own, words, job.services) if words else writing.task
            await search.run()
        except OutOfTokens:
            ended = "extra_tokens" if writing.shared.left < 0 else "tokens"
        except OutOfTime:
            ended = "seconds"
        except NotJudged as failed:
            ended, failure = "verifier", str(failed)
            log.warning("verifier failed", verifier=self.verifier, error=failed.detail or failure)
        finally:
            job.report.discarded += writing.ledger.total
        task = writing.task
        if not search.nodes:  # nothing could be judged
            search.nodes.append(Node((), False, "root", (), Verdict((0.0,) * len(task.names)), 0.0))
        best = search.best
        ended = "solved" if best.score >= SOLVED else ended
        job.report.extra["search"] = {
            "ended": ended,
            "best_so_far": ended != "solved",
            "method": self.method,
            "whole": best.done,
            "goals": dict(zip(task.names, best.verdict.values, strict=True)),
            "chosen": search.nodes.index(best),
            "tree": [_told(each, job.writer.tokens.decode) for each in search.nodes[:SHOWN]],
            "nodes": len(search.nodes),
            "calls": writing.calls,
            "tokens": writing.ledger.tokens,
            "seconds": time.monotonic() - began,
        }
        if failure is not None:
            job.report.extra["search"]["failure"] = failure
        given = [step for part in best.steps for step in writing.drawn[part]]
        job.report.discarded -= min(len(given), job.report.discarded)
        for i, step in enumerate(given):
            last = best.done and i == len(given) - 1
            yield replace(step, finish=(step.finish or "stop") if last else None)
        if not best.done:
            async for step in self._rest(job, proceed, [step.token for step in given]):
                yield step

    async def _rest(self, job: Job, proceed: Proceed, written: list[int]) -> AsyncGenerator[Step, None]:
        """Write a partial answer to its end, greedily, as the answer itself."""
        if len(written) >= job.sampling.max_tokens:
            yield Step(NO_TOKEN, 0.0, 0.0, job.engine, finish="length")
            return
        own = continuation(job, written, job.engine)
        async with aclosing(proceed(replace(own, sampling=replace(own.sampling, temperature=0.0)))) as steps:
            async for step in steps:
                yield step


async def _no_goals(text: str) -> Verdict:
    return Verdict((0.0,))


def _told(node: Node[Part], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    ids = [token for part in node.steps for token in part]
    text = decode(ids)
    return {"how": node.how, "parents": list(node.parents), "steps": len(node.steps), "tokens": len(ids),
            "score": node.score, "whole": node.done,
            "text": text if len(text) <= END else f"…{text[-END:]}"}  # fmt: skip


@dataclass
class Writing:
    """A question whose steps an engine draws, each call with a seed of its own. `drawn` has the engine's steps of every
    part; `budget` is the policy's, `shared` that of the request; `until` ends it (`time.monotonic`)."""

    policy: BES
    job: Job
    proceed: Proceed
    task: Task
    budget: Budget
    shared: Budget
    until: float | None
    rng: random.Random
    ledger: Ledger = field(default_factory=Ledger)
    drawn: dict[Part, list[Step]] = field(default_factory=dict)
    calls: int = 0

    @property
    def root(self) -> Goal:
        return self.task.root

    async def judge(self, steps: tuple[Part, ...]) -> Verdict:
        if steps and self.until is not None and time.monotonic() > self.until:
            raise OutOfTime
        return await self.task.judge(self.job.writer.tokens.decode([token for part in steps for token in part]))

    def fits(self, steps: tuple[Part, ...]) -> bool:
        return sum(map(len, steps)) <= self.job.sampling.max_tokens

    def ended(self, steps: tuple[Part, ...]) -> bool:
        return sum(map(len, steps)) >= self.job.sampling.max_tokens

    async def expand(self, steps: tuple[Part, ...], count: int) -> tuple[tuple[Part, ...], bool]:
        return await self._drawn(steps, count, self.policy.temperature)

    async def finish(self, steps: tuple[Part, ...]) -> tuple[tuple[Part, ...], bool]:
        return await self._drawn(steps, None, 0.0)

    async def _drawn(
        self, before: tuple[Part, ...], count: int | None, temperature: float
    ) -> tuple[tuple[Part, ...], bool]:
        """Draw steps after others: so many, or all to the end. Returns all, and whether the answer is whole."""
        written = [token for part in before for token in part]
        if len(written) >= self.job.sampling.max_tokens:
            return before, False
        self.calls += 1
        own = continuation(sub_job(self.job), written, self.job.engine)
        sampling = replace(
            own.sampling, temperature=temperature, top_p=self.policy.top_p, seed=self.rng.getrandbits(32)
        )
        parts, current, whole = list(before), list[Step](), False
        async with aclosing(self.proceed(replace(own, sampling=sampling))) as made:
            async for step in made:
                self._spend(step)
                whole = step.finish == "stop"
                if step.token != NO_TOKEN:
                    current.append(step)
                text = self.job.writer.tokens.decode([each.token for each in current])
                if current and (self.policy.delimiter in text or step.finish):
                    parts.append(self._kept(current))
                    current = []
                    if count is not None and len(parts) - len(before) >= count:
                        break
        return tuple(parts), whole

    def _kept(self, steps: list[Step]) -> Part:
        part = tuple(step.token for step in steps)
        self.drawn.setdefault(part, steps)
        return part

    def _spend(self, step: Step) -> None:
        """Count a token.

        Raises:
            OutOfTokens: a budget is spent. OutOfTime: the time is over.
        """
        tokens = int(step.token != NO_TOKEN)
        self.ledger.add(step.engine, tokens)
        self.budget.take(tokens)
        self.shared.take(tokens)
        if self.until is not None and time.monotonic() > self.until:
            raise OutOfTime
