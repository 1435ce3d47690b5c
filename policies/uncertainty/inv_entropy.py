"""Inv-Entropy, arXiv 2506.09684: how uncertain an answer is, from answers to other wordings of the question.

A question is put in n other ways, and each wording answered r times. Where the model is sure, all answers agree, and
nothing can be told from an answer about the wording that led to it; where it is not, answers follow the wording.
`waver.entropy.inverse` has the formulas.

Details:
- The paper's measure needs texts only, and (n + 1) r generations. `measure` names cheaper ones for the same purpose,
  from the entropy of the answer's own tokens (free) to semantic entropy; `also` reports several at once.
- A score ranks questions; its range is tiny, and no threshold on it carries over. A calibration made on questions of
  one's own (`waver calibrate inv_entropy`) turns it into the probability that the answer is wrong.
- Above a `level` the policy acts: it says so behind the answer, asks another engine, looks the question up, or
  withholds the answer. Where the answer may change, nothing can be shown before the measure is known; otherwise the
  answer is streamed while the evidence is drawn.
- Evidence is drawn from the request's engine itself, without the other policies of the request.
- The paper judges similarity by an NLI model or by sentence embeddings; here it is what the configuration has
  (`entailment`, an embedder), or shared words. GAAP's substitutes come from the engine in place of WordNet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, field_validator, model_validator

from waver.engines.base import NO_TOKEN, Step, Unsupported
from waver.engines.fingerprint import Fingerprint, fingerprint
from waver.engines.tokens import differences
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.budget import Ledger, OutOfTokens, budget_of, metered
from waver.policies.helpers import say
from waver.policies.job import Job, continuation
from waver.policies.report import Report
from waver.policies.retrieve.l_rag import LRAG
from waver.policies.uncertainty.collect import Collector, Perturbation, Settings, asked
from waver.policies.uncertainty.measures import MEASURES, SAME, Reading, needs, scores
from waver.policies.uncertainty.similarity import Kind

Action = Literal["report", "say", "engine", "look_up", "refuse"]
SETTINGS = ("perturbations", "replications", "draws", "temperature", "answer_tokens", "instruction", "perturb")
"""Parameters that a calibration depends on, beside `similarity`."""
SHOWN = 200
"""Characters of an answer that a report shows."""


@dataclass(frozen=True)
class Measured:
    """Result of measuring: the score that counts, the probability of being wrong if calibrated, and a report."""

    score: float | None
    probability: float | None
    record: dict[str, Any]


class InvEntropy(Policy):
    """Report how uncertain an answer is, and act on it."""

    stage: ClassVar[Stage] = "admit"
    paper: ClassVar[str] = "arXiv 2506.09684"
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_uncertain_answers", "Answers with a measured uncertainty, by what was done.", ("action",)),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "uncertainty": "the measure's score, the probability of being wrong where it is calibrated, and what was done",
    }

    name: Literal["inv_entropy"] = "inv_entropy"
    measure: str = Field(default="inv_entropy", description=f"one of {', '.join(MEASURES)}")
    also: list[str] = Field(default=[], max_length=len(MEASURES), description="other measures to report")
    perturbations: int = Field(default=9, ge=1, le=32, description="other wordings of the question")
    replications: int = Field(default=5, ge=1, le=32, description="answers to each wording")
    draws: int = Field(default=30, ge=1, le=1000, description="bootstrap draws of one answer for each wording")
    temperature: float = Field(default=0.7, gt=0.0, le=2.0, description="of these answers, and of paraphrases")
    answer_tokens: int = Field(default=64, ge=1, le=1024, description="most tokens of these answers")
    instruction: str = Field(
        default=Settings.instruction, max_length=1024, description="what is added to the question for them"
    )
    perturb: Perturbation = Field(default="paraphrase", description="how wordings are made")
    similarity: Kind = Field(
        default="embedding", description="(1+cos)/2 or |cos| of embeddings, entailment both ways, or shared words"
    )
    calibration: str | None = Field(
        default=None, description="a calibration of the configuration; default: the first that fits"
    )
    level: float | None = Field(
        default=None, description="act above it: a probability of being wrong, or a score where nothing is calibrated"
    )
    then: Action = Field(default="report", description="what is done above the level")
    engine: str | None = Field(default=None, description="who answers instead")
    collection: str | None = Field(default=None, description="where it is looked up")
    words: str = Field(
        default="\n\n(I am not certain of this answer.)", max_length=1024, description="what is said behind the answer"
    )
    refusal: str = Field(
        default="I am not certain enough to answer this.", max_length=1024, description="what is said instead of it"
    )
    details: bool = Field(default=False, description="report wordings, answers and what calibration needs")

    @field_validator("measure", "also")
    @classmethod
    def _known(cls, given: Any) -> Any:
        for name in [given] if isinstance(given, str) else given:
            if name not in MEASURES:
                raise ValueError(f"unknown measure {name[:64]!r}; there are {', '.join(MEASURES)}")
        return given

    @model_validator(mode="after")
    def _check(self) -> InvEntropy:
        if (self.level is None) != (self.then == "report"):
            raise ValueError("a level and what is done above it (then) belong together")
        for action, value, example in (
            ("engine", self.engine, '"engine": "large"'),
            ("look_up", self.collection, '"collection": "…"'),
        ):
            if self.then == action and value is None:
                raise ValueError(f"then: {action} needs a name: {example}")
        return self

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys([self.measure, *self.also]))

    @property
    def extra_sequences(self) -> int:
        wanted = needs(self._names)
        states = (self.perturbations + 1 if "variants" in wanted else 1) if wanted & {"variants", "samples"} else 0
        return states * self.replications + 3 * ("variants" in wanted) + ("verdict" in wanted)

    @property
    def helping_engines(self) -> tuple[str, ...]:
        return () if self.engine is None else (self.engine,)

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        made = report.extra.get("uncertainty")
        return () if made is None else (("waver_uncertain_answers", (made["action"],)),)

    async def check(self, job: Job) -> None:
        if needs(self._names) - {"answer"}:
            asked(job)
        if self.then == "say" and job.sampling.grammar is not None:
            raise Unsupported("nothing can be said behind an answer that keeps to a schema", "then")
        if self.calibration is not None and self.calibration not in job.services.calibrations:
            there = ", ".join(job.services.calibrations) or "none"
            raise Unsupported(f"unknown calibration {self.calibration[:64]!r}; there are {there}", "calibration")
        if needs(self._names) & {"variants", "samples"}:
            self._check_similarity(job)
        if self.then == "look_up":
            await self._lookup().check(job)
        if self.engine is not None:
            other = job.services.engines[self.engine].tokens
            if reason := differences(job.writer.tokens, other):
                raise Unsupported(f"{self.engine!r} cannot answer instead of {job.engine!r}: {reason}", "engine")

    def _check_similarity(self, job: Job) -> None:
        """Check that texts can be compared.

        Raises:
            Unsupported: the configuration does not have what compares them.
        """
        missing = {"words": False, "nli": job.services.entailment is None}.get(
            self.similarity, not job.services.embedder
        )
        if missing:
            what = "model of entailment" if self.similarity == "nli" else "embedder"
            raise Unsupported(f'there is no {what} here: compare by "similarity": "words"', "similarity")

    def possible_jobs(self, job: Job) -> list[Job]:
        return [job, *([] if self.engine is None else [replace(job, engine=self.engine)])]

    def _lookup(self) -> LRAG:
        return LRAG(collection=self.collection, gate="always")

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        answer = self._held(job, proceed) if self.then in ("engine", "look_up", "refuse") else self._shown(job, proceed)
        async with aclosing(answer) as steps:
            async for step in steps:
                yield step

    async def _shown(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        """Stream the answer while evidence is drawn; its last step waits for the measure."""
        ledger = Ledger()
        early = frozenset(needs(self._names) - {"answer", "verdict"})
        collector = self._collector(job, ledger)
        drawing = asyncio.ensure_future(collector.collect(early, "", ())) if early else None
        try:
            written: list[Step] = []
            last: Step | None = None
            async with aclosing(proceed(job)) as steps:
                async for step in steps:
                    written.append(step)
                    if step.finish is not None:
                        last = step
                        break
                    yield step
            assert last is not None
            found = await self._measured(job, collector, written, drawing)
        finally:
            if drawing is not None:
                drawing.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await drawing
            job.report.discarded += ledger.total
        above = self._above(found)
        says = self.then == "say" and above and last.finish == "stop"
        job.report.extra["uncertainty"] = found.record | {"action": "said" if says else "reported", "above": above}
        if not says:
            yield last
            return
        ids = [step.token for step in written[:-1]]
        if last.token not in (NO_TOKEN, *job.writer.tokens.eos_ids, *job.sampling.stop_token_ids):
            yield replace(last, finish=None)
            ids.append(last.token)
        async for step in say(continuation(job, ids, job.engine), self.words):
            yield step

    async def _held(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        """Hold the answer back until the measure is known, and give another one above the level."""
        ledger = Ledger()
        written, extra = await metered(job, proceed, ledger, None)
        drawn = ledger.total
        try:
            found = await self._measured(job, self._collector(job, ledger), written, None)
        finally:
            job.report.discarded += ledger.total - drawn
        above = self._above(found)
        action = self.then if above else "reported"
        job.report.extra["uncertainty"] = found.record | {"action": action, "above": above}
        if not above:
            job.report.extra |= extra
            job.report.discarded += drawn - sum(step.token != NO_TOKEN for step in written)
            for step in written:
                yield step
            return
        job.report.discarded += drawn
        async with aclosing(self._instead(job, proceed)) as steps:
            async for step in steps:
                yield step

    def _instead(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        if self.then == "engine":
            assert self.engine is not None
            return proceed(replace(job, engine=self.engine))
        if self.then == "look_up":
            return self._lookup().decode(job, proceed)
        return say(job, self.refusal, "content_filter", self.name)

    def _collector(self, job: Job, ledger: Ledger) -> Collector:
        how = Settings(
            self.perturbations,
            self.replications,
            self.temperature,
            self.answer_tokens,
            self.instruction,
            self.perturb,
            self.similarity,
        )
        return Collector(job, how, ledger, budget_of(job), job.sampling.seed)

    async def _measured(
        self, job: Job, collector: Collector, written: list[Step], drawing: asyncio.Future[Any] | None
    ) -> Measured:
        """Measure an answer; `drawing` is evidence that is being drawn already."""
        tokens = job.writer.tokens
        steps = [step for step in written if step.token != NO_TOKEN]
        entropies = tuple(step.entropy for step in steps)
        text = tokens.decode([step.token for step in steps])
        wanted = needs(self._names)
        try:
            late = wanted if drawing is None else frozenset(wanted & {"answer", "verdict"})
            evidence = await collector.collect(late, text, entropies)
            if drawing is not None:
                early = await drawing
                evidence = replace(early, entropies=evidence.entropies, true=evidence.true)
        except OutOfTokens:
            spent: dict[str, Any] = {"measure": self.measure, "score": None, "ended": "extra_tokens"}
            return Measured(None, None, spent | {"tokens": collector.ledger.tokens})
        reading = Reading(evidence, self.draws, job.sampling.seed, SAME)
        found = await asyncio.to_thread(scores, self._names, reading)
        model = await fingerprint(job.writer) if self.details or job.services.calibrations else None
        name, probability = self._probability(job, model, found[self.measure])
        record: dict[str, Any] = {"measure": self.measure, "score": found[self.measure], "scores": found}
        record |= {} if probability is None else {"probability": probability, "calibration": name}
        record["tokens"] = collector.ledger.tokens
        if self.details:
            assert model is not None
            record["settings"] = self._settings()
            record["fingerprint"] = model.model_dump(mode="json")
            record["variants"] = [each[:SHOWN] for each in evidence.variants]
            record["answers"] = [[said.text[:SHOWN] for said in own] for own in evidence.answers]
        return Measured(found[self.measure], probability, record)

    def _settings(self) -> dict[str, Any]:
        own = self.model_dump(mode="json")
        return {name: own[name] for name in (*SETTINGS, "similarity")}

    def _probability(self, job: Job, model: Fingerprint | None, score: float) -> tuple[str | None, float | None]:
        """Calibrate a score.

        Raises:
            Unsupported: the calibration that was named does not fit.
        """
        for name, each in job.services.calibrations.items():
            if self.calibration not in (None, name):
                continue
            reason = each.misfit(self.measure, self._settings(), cast(Fingerprint, model))
            if reason is None:
                return name, each.measures[self.measure](score)
            if self.calibration == name:
                raise Unsupported(f"the calibration {name!r} does not fit: {reason}", "calibration")
        return None, None

    def _above(self, found: Measured) -> bool:
        value = found.score if found.probability is None else found.probability
        return self.level is not None and value is not None and value > self.level
