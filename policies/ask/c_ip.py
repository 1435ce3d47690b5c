"""C-IP, arXiv 2507.03279: ask the question that shrinks the expected conformal set most, until one hypothesis is left.

    C_tau(h) = {y : f_y(h) >= tau},  q = argmin_q log2 E_x |C_tau(k+1)(h + (q, q(x)))|

A conversation about a task (`waver.policies.ask.task`): the policy asks a yes-or-no question, the user answers, and so
on. All of its state is in the conversation, so that nothing is lost when a server restarts, and any number of servers
can take turns. It guesses once the set holds one hypothesis, no question promises to tell more (the standard deviation
of their scores is below `epsilon`), all have been asked, or `length` is reached.

Details:
- `predictor: model` reads f from the probabilities of the options' letters, one forward pass for each question and each
  of its answers; `table` computes it from the task's own answers and needs no model.
- The expectation is over the hypotheses, all of them alike (the paper samples a few): a yes-or-no question has two
  continuations only, so that this costs no more.
- tau belongs to the length of the history with the next question in it. The thresholds of a model come from
  `waver calibrate c_ip`; those of the table are made on the spot. Sets of random histories hold the truth with
  probability 1 - alpha; for questions that were chosen nothing is promised, so what users say of a guess is counted
  (`waver_asking_outcomes`), and whether the last set held what they say is right (`waver_asking_coverage`). Where that
  share falls below the promise, calibrate anew.
- `select: ip` minimises the expected entropy instead, `bound` the released code's finer score, `random` asks anything;
  `ip` and `random` need no thresholds, and guess at a set of one hypothesis where there are some.
- The paper stops where the scores of all questions are level. They are so, too, where all are equally good, as often at
  the beginning: here no question may promise to lower the entropy by `epsilon` either.
- A set that is empty, which a large alpha makes after few questions, tells nothing: it counts as all hypotheses in a
  score, and does not end the conversation.
- Ties of C-IP go to the least expected entropy, then to the first. Where tau is so low that all sets are full, every
  question has the same score, and IP decides, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from waver.engines.base import Step, Unsupported
from waver.engines.fingerprint import fingerprint
from waver.entropy.conformal import bound, entropy, expected_size, members, nothing_to_gain
from waver.policies.ask.history import GUESS, Asked, History, read
from waver.policies.ask.predictors import by_model
from waver.policies.ask.table import Array, by_table
from waver.policies.ask.task import AskTask
from waver.policies.ask.thresholds import Thresholds, from_table, taus
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.budget import Ledger, OutOfTokens, budget_of
from waver.policies.helpers import say
from waver.policies.job import Job
from waver.policies.report import Report

Select = Literal["c_ip", "ip", "bound", "random"]


@dataclass(frozen=True)
class Candidate:
    """A question with the predictions after each of its answers, `[2, hypotheses]`: no, then yes; and how many
    hypotheses would answer so."""

    question: int
    f: Array
    weights: Array
    labels: tuple[int, ...]

    def expanded(self) -> Array:
        """Return the prediction after each hypothesis's own answer, `[hypotheses, hypotheses]`."""
        return np.asarray(self.f[np.asarray(self.labels)], np.float64)


class ConformalPursuit(Policy):
    """Ask back with as few questions as possible."""

    stage: ClassVar[Stage] = "ask"
    paper: ClassVar[str] = "arXiv 2507.03279"
    evaluation: ClassVar[Mapping[str, tuple[str, ...]]] = {"select": ("ip", "bound", "random")}
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_asking_outcomes", "Guesses, by what the user said of them.", ("task", "outcome")),
        CounterSpec(
            "waver_asking_coverage",
            "Conversations whose truth became known, by whether the last conformal set held it; "
            "1 - alpha of them are promised for random questions.",
            ("task", "held"),
        ),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "asking": "the question or guess, the probabilities and the conformal set, and why it stopped; once the truth "
        "is known, whether the set held it",
    }

    name: Literal["c_ip"] = "c_ip"
    task: str = Field(default="animals", description="a task of the configuration, or one that comes with Waver")
    alpha: float = Field(default=0.1, gt=0.0, lt=0.5, description="share of truths that sets may miss")
    length: int = Field(default=20, ge=1, le=64, description="most questions")
    epsilon: float = Field(
        default=0.01, ge=0.0, description="spread of the scores, and gain (bits), below which it guesses"
    )
    select: Select = Field(default="c_ip", description="how the next question is chosen")
    predictor: Literal["model", "table"] = Field(default="model", description="where probabilities come from")
    error: float = Field(
        default=0.05, gt=0.0, lt=0.5, description="probability with which an answer is wrong, for the table"
    )
    thresholds: str | None = Field(
        default=None, description="thresholds of the configuration; default: the first that fit"
    )
    consider: int = Field(default=32, ge=1, le=128, description="questions that a model looks at, drawn from the rest")
    predict: bool = Field(default=False, description="guess at once, and report what calibration needs")

    @property
    def extra_sequences(self) -> int:
        return 2 * self.consider + 1 if self.predictor == "model" else 0

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        asking = report.extra.get("asking", {})
        told, held = asking.get("outcome"), asking.get("covered")
        found = [] if told is None else [("waver_asking_outcomes", (self.task, told))]
        return found if held is None else [*found, ("waver_asking_coverage", (self.task, str(held).lower()))]

    async def check(self, job: Job) -> None:
        self._task(job)
        if not job.messages:
            raise Unsupported("asking back needs a conversation: send messages")
        if job.sampling.grammar is not None:
            raise Unsupported("a question keeps to no schema: leave out response_format, and tools that are forced")
        if self.thresholds is not None and self.thresholds not in job.services.thresholds:
            there = ", ".join(job.services.thresholds) or "none"
            raise Unsupported(f"unknown thresholds {self.thresholds[:64]!r}; there are {there}", "thresholds")
        if self.predictor == "model" and self._needs_sets and not self.predict:
            await self._fitting(job, self._task(job))

    def possible_jobs(self, job: Job) -> list[Job]:
        return [job]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        task = self._task(job)
        history = read(job.messages, task)
        ledger = Ledger()
        record: dict[str, Any] = {"task": self.task, "asked": len(history.asked)}
        job.report.extra["asking"] = record
        try:
            words = await self._turn(job, task, history, ledger, record)
        finally:
            job.report.discarded += ledger.total
            record["tokens"] = ledger.tokens
        async with aclosing(say(job, words)) as steps:
            async for step in steps:
                yield step

    async def _turn(self, job: Job, task: AskTask, history: History, ledger: Ledger, record: dict[str, Any]) -> str:
        """Choose what to say next, and record why."""
        if history.guess is not None:
            return await self._feedback(job, task, history, ledger, record)
        try:
            (f,) = await self._predict(job, task, [history.known], ledger)
        except OutOfTokens as spent:
            raise Unsupported("the server's max_extra_tokens leaves none to look at the answers with") from spent
        record["probabilities"] = dict(zip(task.hypotheses, f.tolist(), strict=True))
        best = int(f.argmax())
        if self.predict:
            record["definition"] = task.model_dump(mode="json")
            record["digest"] = task.digest
            record["model"] = (await fingerprint(job.writer)).model_dump(mode="json")
            return GUESS.format(name=task.hypotheses[best])
        tau = await self._tau(job, task)
        k = len(history.known)
        inside = self._set(f, tau, k)
        record["set"] = [name for name, held in zip(task.hypotheses, inside, strict=True) if held]
        left = [q for q in range(len(task.questions)) if q not in {each.question for each in history.asked}]
        reason = "set" if inside.sum() == 1 else "length" if k >= self.length else None if left else "questions"
        question = None
        if reason is None:
            question, reason = await self._choose(
                job, task, history.known, left, tau, float(entropy(f)), ledger, record
            )
        if question is None:
            record |= {"guess": task.hypotheses[best], "stopped": reason}
            return GUESS.format(name=task.hypotheses[best])
        record["question"] = task.questions[question]
        greeting = f"{task.greeting.strip()}\n\n" if task.greeting and not history.asked else ""
        return greeting + task.questions[question]

    async def _feedback(self, job: Job, task: AskTask, history: History, ledger: Ledger, record: dict[str, Any]) -> str:
        """Answer what the user said of a guess, and record whether it was right and the last set held the truth."""
        assert history.guess is not None
        right = history.truth == history.guess
        record["outcome"] = "right" if right else "wrong"
        record["truth"] = None if history.truth is None else task.hypotheses[history.truth]
        tau = await self._tau(job, task)
        if history.truth is not None and history.known and tau is not None:
            with suppress(OutOfTokens):  # then it is not counted
                (f,) = await self._predict(job, task, [history.known], ledger)
                inside = self._set(f, tau, len(history.known))
                record["covered"] = bool(inside[history.truth])
                record["promised"] = 1 - self.alpha
        return "Good." if right else "Thank you, I did not know."

    @property
    def _needs_sets(self) -> bool:
        """Tell whether a model's thresholds have to be there."""
        return self.select in ("c_ip", "bound") or self.thresholds is not None

    def _set(self, f: Array, tau: Sequence[float] | None, k: int) -> NDArray[np.bool_]:
        """Return which hypotheses `[hypotheses]` the set of a history of `k` answers holds; all before the first, and
        where there are no thresholds."""
        return np.ones(len(f), bool) if tau is None or not k else members(f, tau[min(k, len(tau)) - 1])

    async def _choose(
        self, job: Job, task: AskTask, known: Sequence[Asked], left: Sequence[int], tau: Sequence[float] | None,
        now: float, ledger: Ledger, record: dict[str, Any],
    ) -> tuple[int | None, str | None]:  # fmt: skip
        """Choose a question; None and the reason where it is time to guess. `now` is the entropy before it (bits)."""
        rng = random.Random(f"c_ip:{job.sampling.seed}:{len(known)}")
        if self.select == "random":
            return rng.choice(list(left)), None
        if self.predictor == "model" and len(left) > self.consider:
            left = sorted(rng.sample(list(left), self.consider))
        try:
            found = await self._candidates(job, task, known, left, ledger)
        except OutOfTokens:
            record["ended"] = "extra_tokens"
            return None, "extra_tokens"
        scores = [self._score(each, 0.0 if tau is None else tau[len(known)]) for each in found]
        record["scores"] = {"least": min(scores), "spread": float(np.std(scores))}
        entropies = [float(entropy(each.f) @ each.weights) for each in found]
        level = nothing_to_gain(scores, self.epsilon) and nothing_to_gain(entropies, self.epsilon)
        if level and now - min(entropies) < self.epsilon:
            return None, "spread"
        best = min(range(len(found)), key=lambda i: (round(scores[i], 9), entropies[i], i))
        return found[best].question, None

    def _score(self, each: Candidate, tau: float) -> float:
        if self.select == "ip":
            return float(entropy(each.f) @ each.weights)
        if self.select == "bound":
            count = len(each.labels)
            return bound(each.expanded(), tau, range(count), self.alpha, self.alpha - 1 / (count + 1))
        return expected_size(each.expanded(), tau)

    async def _candidates(
        self, job: Job, task: AskTask, known: Sequence[Asked], left: Sequence[int], ledger: Ledger
    ) -> list[Candidate]:
        histories = [[*known, Asked(question, answer)] for question in left for answer in (False, True)]
        table = await self._predict(job, task, histories, ledger)
        out = []
        for i, question in enumerate(left):
            labels = tuple(int(task.answer(y, question)) for y in range(len(task.hypotheses)))
            yes = sum(labels) / len(labels)
            out.append(Candidate(question, table[2 * i : 2 * i + 2], np.array([1 - yes, yes]), labels))
        return out

    async def _predict(self, job: Job, task: AskTask, histories: Sequence[Sequence[Asked]], ledger: Ledger) -> Array:
        if self.predictor == "table":
            return np.stack([by_table(task, asked, self.error) for asked in histories])
        return await by_model(job, task, histories, ledger, budget_of(job))

    async def _tau(self, job: Job, task: AskTask) -> list[float] | None:
        """Return the thresholds by length; beyond what was calibrated the last one holds. None: there are none, and
        the way of choosing needs none."""
        if self.predictor == "table":
            true = await asyncio.to_thread(table_calibration, task.model_dump_json(), self.error, self.length)
        else:
            try:
                true = (await self._fitting(job, task)).true
            except Unsupported:
                if self._needs_sets:
                    raise
                return None
        found = taus(true, self.alpha)
        return [*found, *[found[-1]] * (self.length + 1 - len(found))]

    async def _fitting(self, job: Job, task: AskTask) -> Thresholds:
        """Find thresholds for this task and model.

        Raises:
            Unsupported: there are none.
        """
        model, reasons = await fingerprint(job.writer), []
        for name, each in job.services.thresholds.items():
            if self.thresholds in (None, name):
                if (reason := each.misfit(task, model)) is None:
                    return each
                reasons.append(f"{name}: {reason}")
        why = reasons[0] if reasons else "none are configured"
        raise Unsupported(
            f"no thresholds fit ({why}): make some with waver calibrate c_ip, or ask by "
            '"select": "ip" or "predictor": "table"',
            "thresholds",
        )

    def _task(self, job: Job) -> AskTask:
        found = job.services.tasks.get(self.task)
        if found is None:
            raise Unsupported(f"unknown task {self.task[:64]!r}; there are {', '.join(job.services.tasks)}", "task")
        return found


@lru_cache(maxsize=64)
def table_calibration(task: str, error: float, length: int) -> list[list[float]]:
    """Calibrate the table's predictor, once for each task, which is given as JSON."""
    own = AskTask.model_validate_json(task)
    return from_table(own, error, min(length + 1, len(own.questions)))
