"""Entropy Judger, arXiv 2602.04234: draw several runs of a request and give the best, chosen without reading them.

A run is one answer of the request's own engine, or of several roles that work on it together (`topology`). Its token
entropies are made into features (`waver.entropy.traces`), of which a judge (`waver.engines.judge`, trained by
`waver train judge`) says how probable it is that the run is right:

    best of K:   argmax_k P(right | features_k)
    early stop:  the first run with P >= threshold, in the order in which they are drawn; the last where none reaches it

Details:
- `select` has the simpler rules that a judge must beat, on the same runs: the plurality of the answers
  (self-consistency), the least mean entropy, chance, and one that knows the answer. `auto` votes first, and asks the
  judge where votes are level or answers cannot be compared.
- The paper's entropies are those of the distribution that is drawn from, after temperature and top-p. They come from
  inside of the engine; one that cannot tell them needs `entropy: raw`, which is another convention.
- Runs are drawn at the policy's own temperature and top_p, which belong to the convention that a judge was trained in;
  the request's seed makes them repeatable.
- A judge is for one model and one convention, and refuses others.
- The paper makes two rounds; one is the default here, since a second one costs as much again, and in its own figures
  rarely corrects an answer.
- Nothing can be shown before the choice is made; then the chosen answer is streamed. The tokens of all others count as
  discarded. Where a server's `max_extra_tokens` is spent, what was not finished is ended, and the best of the finished
  runs is given. The first run is always finished.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from waver.answers import NUMBER, contains, number
from waver.choice import Candidate, Choice, Rule, choose
from waver.concurrency import together
from waver.engines.base import Step, Unsupported
from waver.engines.fingerprint import Fingerprint, fingerprint
from waver.engines.judge import Convention, Judge
from waver.engines.tokens import differences
from waver.entropy.traces import Trace, features
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.budget import Ledger, OutOfTokens, budget_of
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.select.final_answer import Form
from waver.policies.select.runs import Measure, Run, Settings, call_job, draw
from waver.policies.select.topologies import ROLES, Topology

SHOWN = 200
"""Characters of an answer that a report shows."""
PRESET = "waver/"
"""Beginning of the name of a preset, as in a request's `model`."""


@dataclass(frozen=True)
class _Judged:
    """A run with what is known of it: its features, and how a rule sees it."""

    run: Run
    seen: Candidate


class EntropyJudger(Policy):
    """Draw several answers and give the best."""

    stage: ClassVar[Stage] = "select"
    paper: ClassVar[str] = "arXiv 2602.04234"
    evaluation: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "select": ("random", "oracle"),
        "answer": (),
        "reference": (),
        "features": (),
    }
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_selections", "Answers chosen among several, by the rule that decided.", ("rule",)),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "selection": "the runs that were drawn, which one was chosen, by what, and what all of them cost",
    }

    name: Literal["entropy_judger"] = "entropy_judger"
    samples: int = Field(default=5, ge=1, le=64, description="runs to draw")
    select: Rule = Field(
        default="auto", description="the rule that chooses; auto: a vote, and where it is level the judge"
    )
    judge: str | None = Field(default=None, description="a judge of the configuration; default: the first that fits")
    threshold: float | None = Field(
        default=None, gt=0.0, lt=1.0, description="stop at the first run that is right with this probability"
    )
    topology: Topology = Field(default="single", description="how calls work together in a run")
    rounds: int = Field(default=1, ge=1, le=5, description="rounds of a run; the paper's number is 2")
    roles: dict[str, str] = Field(
        default={}, description="engines of roles, or presets, as waver/NAME; others have the request's"
    )
    temperature: float = Field(default=0.6, gt=0.0, le=2.0, description="at which runs are drawn")
    top_p: float = Field(default=0.95, gt=0.0, le=1.0, description="at which runs are drawn")
    entropy: Measure = Field(default="drawn", description="of the distribution drawn from, or the model's own")
    answers: Form = Field(default="auto", description="how answers are compared")
    reference: bool = Field(default=False, description="also draw a single solver's run, to compare the runs with")
    features: bool = Field(default=False, description="report the features and texts of all runs, as training needs")
    answer: str | None = Field(default=None, max_length=4096, description="the right answer, which the oracle knows")

    @model_validator(mode="after")
    def _check(self) -> EntropyJudger:
        if unknown := set(self.roles) - set(ROLES[self.topology]):
            raise ValueError(f"{self.topology} has no role {min(unknown)!r}; its are {', '.join(ROLES[self.topology])}")
        if self.select == "oracle" and not (self.answer or "").strip():
            raise ValueError('the oracle needs the right answer: "answer": "…"')
        if self.threshold is not None and self.select not in ("auto", "judge"):
            raise ValueError("a threshold is one of a judge's probability: leave it out, or select by the judge")
        return self

    @property
    def extra_sequences(self) -> int:
        calls = len(ROLES[self.topology]) * self.rounds
        return self.samples * calls - 1 + self._compares

    @property
    def helping_engines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each for each in self.roles.values() if not each.startswith(PRESET)))

    @property
    def helping_presets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._presets.values()))

    @property
    def _presets(self) -> dict[str, str]:
        """Presets by role."""
        return {role: own.removeprefix(PRESET) for role, own in self.roles.items() if own.startswith(PRESET)}

    @property
    def _compares(self) -> bool:
        return self.reference and (self.topology, self.rounds) != ("single", 1)

    @property
    def _needs_judge(self) -> bool:
        return self.select == "judge" or self.threshold is not None or self.judge is not None

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        made = report.extra.get("selection")
        return () if made is None else (("waver_selections", (made["by"],)),)

    async def check(self, job: Job) -> None:
        own = job.sampling
        if own.top_k > 0 or own.min_p > 0:
            raise Unsupported("runs are drawn at the policy's own temperature and top_p: leave out top_k and min_p")
        if self.judge is not None and self.judge not in job.services.judges:
            there = ", ".join(job.services.judges) or "none"
            raise Unsupported(f"unknown judge {self.judge[:64]!r}; there are {there}", "judge")
        if self._needs_judge and not job.services.judges:
            raise Unsupported("no judge is configured (waver train judge makes one)", "judge")
        for role, name in self._presets.items():
            for policy in job.services.presets[name]:
                await policy.check(replace(job, engine=self._engine(job, role)))
        for role in ROLES[self.topology]:
            if reason := differences(job.writer.tokens, job.services.engines[self._engine(job, role)].tokens):
                raise Unsupported(f"the {role}'s engine cannot share an answer with {job.engine!r}: {reason}", "roles")

    def possible_jobs(self, job: Job) -> list[Job]:
        how = self._settings(job)
        first = call_job(job, ROLES[self.topology][0], (), how, job.sampling.seed, True)
        named = dict.fromkeys(self._engine(job, role) for role in ROLES[self.topology] if role not in how.presets)
        jobs = [replace(first, prompt_ids=job.prompt_ids, engine=engine) for engine in named]
        for role, policies in how.presets.items():
            inner = [replace(first, prompt_ids=job.prompt_ids, engine=self._engine(job, role))]
            for policy in policies:
                inner = [each for outer in inner for each in policy.possible_jobs(outer)]
            jobs += inner
        return jobs

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        how, ledger = self._settings(job), Ledger()
        models = await self._models(job)
        judge, name = self._judge(job, models, proceed)
        alone = await self._alone(job, proceed, ledger) if self._compares else None
        judged, ended = await self._runs(job, proceed, how, ledger, judge, alone)
        choice = self._choose(judged, ended, job.sampling.seed)
        given = judged[choice.place].run
        ran = [self._told(each) for each in judged]
        record: dict[str, Any] = {
            "rule": self.select,
            "by": choice.by,
            "chosen": choice.place,
            "runs": ran,
            "tokens": ledger.tokens,
        }
        record |= {"judge": name} if name is not None else {}
        record |= {"ended": ended} if ended else {}
        if self.features:
            record["convention"] = self._convention(proceed).model_dump(mode="json")
            record["models"] = {role: each.model_dump(mode="json") for role, each in models.items()}
        job.report.extra |= given.extra
        job.report.extra["selection"] = record
        job.report.discarded += ledger.total - sum(step.token >= 0 for step in given.steps)
        for step in given.steps:
            yield step

    def _settings(self, job: Job) -> Settings:
        engines = {role: self._engine(job, role) for role in self.roles}
        presets = {role: job.services.presets[name] for role, name in self._presets.items()}
        return Settings(
            self.topology, self.rounds, engines, self.temperature, self.top_p, self.entropy, self.answers, presets
        )

    def _engine(self, job: Job, role: str) -> str:
        """Return the engine of a role; of one with a preset the first that the preset's policies name."""
        if role not in self._presets:
            return self.roles.get(role, job.engine)
        policies = job.services.presets[self._presets[role]]
        return next((getattr(each, name) for each in policies for name in each.engine_fields), job.engine)

    def _convention(self, proceed: Proceed) -> Convention:
        return Convention(
            entropy=self.entropy,
            temperature=self.temperature,
            top_p=self.top_p,
            topology=self.topology,
            rounds=self.rounds,
            compared=self._compares,
            beside=(
                *(policy.name for policy in proceed.policies),
                *(f"{role}: {PRESET}{name}" for role, name in sorted(self._presets.items())),
            ),
        )

    async def _models(self, job: Job) -> dict[str, Fingerprint]:
        """Measure the engines of the roles; empty where nothing asks for it."""
        if not (self.features or (job.services.judges and self.select in ("auto", "judge"))):
            return {}
        engines = {role: job.services.engines[self._engine(job, role)] for role in ROLES[self.topology]}
        return {role: await fingerprint(engine) for role, engine in engines.items()}

    def _judge(self, job: Job, models: Mapping[str, Fingerprint], proceed: Proceed) -> tuple[Judge | None, str | None]:
        """Choose a judge that fits, with its name.

        Raises:
            Unsupported: one is needed, and none fits.
        """
        if self.select not in ("auto", "judge"):
            return None, None
        reasons = []
        for name, judge in job.services.judges.items():
            if self.judge not in (None, name):
                continue
            reason = judge.misfit(self._convention(proceed), models)
            if reason is None:
                return judge, name
            reasons.append(f"{name}: {reason}")
        if self._needs_judge:
            raise Unsupported(f"no judge fits: {reasons[0] if reasons else 'none is configured'}", "judge")
        return None, None

    async def _alone(self, job: Job, proceed: Proceed, ledger: Ledger) -> Trace | None:
        """Draw a single solver's run; None where the tokens for it are spent."""
        how = replace(self._settings(job), topology="single", rounds=1, engines={}, presets={})
        try:
            return (await draw(job, proceed, how, self.samples, ledger, budget_of(job))).trace
        except OutOfTokens:
            return None

    async def _runs(
        self, job: Job, proceed: Proceed, how: Settings, ledger: Ledger, judge: Judge | None, alone: Trace | None
    ) -> tuple[list[_Judged], str | None]:
        """Draw the runs: one after the other where an early one may do, else all at the same time. Returns those that
        were finished, and why there are not more."""
        budget = budget_of(job)

        async def one(place: int) -> _Judged | None:
            try:
                run = await draw(job, proceed, how, place, ledger, budget if place else None)
            except OutOfTokens:
                return None
            return self._judged(run, judge, alone)

        if self.threshold is None:
            made = await together(*(one(place) for place in range(self.samples)))
            found = [each for each in made if each is not None]
            return found, "extra_tokens" if len(found) < self.samples else None
        found = []
        for place in range(self.samples):
            if (each := await one(place)) is None:
                return found, "extra_tokens"
            found.append(each)
            if (each.seen.probability or 0.0) >= self.threshold:
                return found, "threshold"
        return found, None

    def _judged(self, run: Run, judge: Judge | None, alone: Trace | None) -> _Judged:
        own = features(run.trace, alone)
        known = (self.answer or "").strip()
        right = bool(known) and (number if NUMBER.fullmatch(known) else contains)(run.text, known)
        probability = None if judge is None else judge(own)
        return _Judged(run, Candidate(run.key, own["sample_mean"], probability, right, own))

    def _choose(self, judged: list[_Judged], ended: str | None, seed: int) -> Choice:
        if self.threshold is not None and ended != "extra_tokens":
            return Choice(len(judged) - 1, "judge")  # the one that reached it, or the last
        rule: Rule = "judge" if self.threshold is not None else self.select
        return choose([each.seen for each in judged], rule, seed)

    def _told(self, each: _Judged) -> dict[str, Any]:
        seen = each.seen
        out: dict[str, Any] = {
            "answer": None if seen.key is None else seen.key[:SHOWN],
            "entropy": seen.entropy,
            "tokens": int(seen.features["sample_tokens"]),
        }
        out |= {} if seen.probability is None else {"probability": seen.probability}
        if self.features:
            told = {name: None if math.isnan(value) else value for name, value in seen.features.items()}
            out |= {"text": each.run.text, "features": told}
        return out
