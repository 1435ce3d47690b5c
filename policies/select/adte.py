"""ADTE, arXiv 2602.11743: answer with one of given labels, by the most confident of several views of the question.

A view is the model's distribution over the labels, read at the letter of its option. Views differ by the order in which
the options stand (`order`), or by a text that the model draws before it chooses (`reasoned`). The most confident `keep`
of them are averaged, and the likeliest label is the answer. `waver.entropy.debiased` has the formulas.

Details:
- Confidence is an entropy in which each label has an order of its own, high for labels that this model predicts too
  often. It comes from sure predictions of earlier requests with the same labels, engine and caller, kept in a store:
  distributions over labels, and no text. Until `warmup` of them are there all labels have the order 0.1.
- The paper's views are crops of an image for CLIP; views of a text are ours.
- The estimate follows the stream of requests, as the paper describes it; the released code makes a first pass over all
  test items.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from waver.concurrency import together
from waver.engines.base import NO_TOKEN, Sampling, Step, Unsupported
from waver.entropy.debiased import (
    CONSTANT,
    HIGH,
    KEPT,
    LEAST,
    LOW,
    Array,
    LabelBank,
    debiased_entropy,
    margin,
    orders,
    select_views,
    shannon,
    softmax,
)
from waver.policies.answer import Answer
from waver.policies.ask.predictors import ALTERNATIVES, PREFIX, of_alternatives
from waver.policies.ask.task import LETTERS
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.budget import Budget, Ledger, OutOfTokens, budget_of, metered
from waver.policies.helpers import say
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.stores import Store
from waver.policies.uncertainty.collect import asked, prompt

Label = Annotated[str, Field(min_length=1, max_length=512)]
STORE = "adte"
REASONING = "\n\nThink it over in a few words, then say which option is right."
LETTER = "\n\nAnswer with its letter only."


@dataclass(frozen=True)
class _Views:
    """Probabilities of the labels in each view `[views, labels]`, and why there are not more."""

    p: Array
    ended: str | None


class Adte(Policy):
    """Answer with one of given labels, by the most confident of several views."""

    stage: ClassVar[Stage] = "select"
    paper: ClassVar[str] = "arXiv 2602.11743"
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_labelled_answers", "Answers with a label, by the measure that chose views.", ("measure",)),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "label": "the label chosen, its probability, those of all labels, which views were kept, and the orders",
    }

    name: Literal["adte"] = "adte"
    labels: list[Label] = Field(
        default=["yes", "no"], min_length=2, max_length=ALTERNATIVES, description="the labels to choose among"
    )
    views: int = Field(default=20, ge=1, le=64, description="views of the question")
    keep: float = Field(default=KEPT, gt=0.0, le=1.0, description="share of the views that are averaged")
    view: Literal["order", "reasoned"] = Field(
        default="order", description="options in another order; or besides, behind a text that is drawn"
    )
    measure: Literal["adte", "tsallis", "shannon"] = Field(default="adte", description="how views are ranked")
    q: float = Field(default=CONSTANT, ge=0.0, le=0.99, description="the order of `tsallis`")
    low: float = Field(default=LOW, ge=0.0, le=0.99, description="order of the rarest label")
    high: float = Field(default=HIGH, ge=0.0, le=0.99, description="order of the most frequent label")
    prior: list[float] | None = Field(
        default=None, description="how often this model predicts each label, where it is known"
    )
    adjust: bool = Field(default=False, description="divide the probabilities by the prior as well")
    learn: bool = Field(default=True, description="keep sure predictions, for the prior of later requests")
    warmup: int = Field(default=100, ge=1, le=10_000, description="sure predictions before the prior is used")
    slots: int = Field(default=10, ge=1, le=50, description="sure predictions that are kept for each label")
    margin: float = Field(default=1.0, ge=0.0, description="logits from the first label to the second of a sure one")
    instruction: str = Field(
        default="Which of these is right?", max_length=1024, description="what is said before the options"
    )
    text_tokens: int = Field(default=128, ge=1, le=4096, description="most tokens of a text of `reasoned`")
    temperature: float = Field(default=0.7, gt=0.0, le=2.0, description="at which texts of `reasoned` are drawn")

    @model_validator(mode="after")
    def _check(self) -> Adte:
        if len({label.strip().casefold() for label in self.labels}) < len(self.labels):
            raise ValueError("labels are all different")
        if self.low > self.high:
            raise ValueError("low is at most high")
        if self.prior is not None and (len(self.prior) != len(self.labels) or min(self.prior) <= 0):
            raise ValueError("prior has a number above 0 for each label")
        return self

    @property
    def extra_sequences(self) -> int:
        return self.views * (2 if self.view == "reasoned" else 1)

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        return (("waver_labelled_answers", (self.measure,)),) if "label" in report.extra else ()

    async def check(self, job: Job) -> None:
        asked(job)
        if job.sampling.grammar is not None:
            raise Unsupported("the answer is one of the labels: leave out other forms of structured output", "labels")
        if (count := len(self._prompt(job, range(len(self.labels))))) >= self._room(job):
            raise Unsupported(
                f"the question and its labels have {count} tokens, and leave no room for a view", "labels"
            )

    def possible_jobs(self, job: Job) -> list[Job]:
        return [self._letter_job(job, self._prompt(job, range(len(self.labels)))), *self._texts(job)]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        ledger = Ledger()
        try:
            views = await self._views(job, proceed, ledger)
        finally:
            job.report.discarded += ledger.total
        bank, _ = await self._bank(job)
        prior = self._prior(bank)
        q = np.full(len(self.labels), CONSTANT) if prior is None else orders(prior, self.low, self.high)
        p = views.p
        if self.adjust and prior is not None:
            p = softmax(np.log(np.clip(p, LEAST, None)) - np.log(np.clip(prior, LEAST, None)))
        scores = {"shannon": shannon, "tsallis": lambda v: debiased_entropy(v, self.q)}.get(
            self.measure, lambda v: debiased_entropy(v, q)
        )(p)
        found = select_views(p, scores, self.keep)
        told: dict[str, Any] = {
            "chosen": self.labels[found.label],
            "probability": float(found.mean[found.label]),
            "probabilities": self._named(found.mean),
            "all_views": self._named(softmax(np.log(np.clip(views.p, LEAST, None)).mean(0))),
            "views": len(p),
            "kept": list(found.kept),
            "measure": self.measure,
        }
        told |= {"orders": self._named(q)} if self.measure == "adte" else {}
        told |= {"learned_from": bank.entered} if self.prior is None else {}
        told |= {"ended": views.ended} if views.ended else {}
        job.report.extra["label"] = told
        async for step in say(job, self.labels[found.label]):
            yield step

    async def after(self, job: Job, answer: Answer) -> None:
        told = job.report.extra.get("label")
        if not self.learn or told is None:
            return
        bank, store = await self._bank(job)
        if store is None:
            return
        logits = np.log(np.clip([told["all_views"][label] for label in self.labels], LEAST, None))
        if (place := bank.add(logits)) is not None:
            key = self._key(job)
            kept = {"margin": margin(logits), "p": softmax(logits).tolist()}
            await store.put(f"{key}/{place[0]}/{place[1]}", kept)
            await store.put(f"{key}/entered", bank.entered)

    def _named(self, values: Iterable[float]) -> dict[str, float]:
        return {label: float(value) for label, value in zip(self.labels, values, strict=True)}

    def _prior(self, bank: LabelBank) -> Array | None:
        """Return what is known of how often labels are predicted; None before enough is."""
        if self.prior is not None:
            return np.asarray(self.prior, np.float64) / sum(self.prior)
        return bank.prior() if bank.entered >= self.warmup else None

    async def _views(self, job: Job, proceed: Proceed, ledger: Ledger) -> _Views:
        budget = budget_of(job)

        async def one(number: int) -> Array | None:
            try:
                return await self._view(job, proceed, number, ledger, budget if number else None)
            except OutOfTokens:
                return None

        found = [each for each in await together(*map(one, range(self.views))) if each is not None]
        return _Views(np.stack(found), "extra_tokens" if len(found) < self.views else None)

    async def _view(self, job: Job, proceed: Proceed, number: int, ledger: Ledger, budget: Budget | None) -> Array:
        """Read the probabilities of the labels `[labels]` in one view; the first has them in their own order."""
        places = list(range(len(self.labels)))
        rng = random.Random(f"adte:{job.sampling.seed}:{number}")
        if number:
            rng.shuffle(places)
        ids = self._prompt(job, places)
        for own in self._texts(job, places, rng.getrandbits(32)):
            steps, _ = await metered(own, proceed, ledger, budget)
            ends = (*job.writer.tokens.eos_ids, *job.sampling.stop_token_ids)
            said = [step.token for step in steps if step.token not in (NO_TOKEN, *ends)]
            ids = (*own.prompt_ids, *said, *job.writer.tokens.encode_plain(f"\n{PREFIX}"))
        steps, _ = await metered(self._letter_job(job, ids), Proceed(), ledger, budget)
        f = of_alternatives(job, steps[0].top_logprobs, len(places))
        out = np.empty(len(places))
        out[places] = f
        return out

    def _letter_job(self, job: Job, ids: tuple[int, ...]) -> Job:
        sampling = Sampling(temperature=0.0, max_tokens=1, top_logprobs=ALTERNATIVES)
        return replace(job, prompt_ids=ids, sampling=sampling)

    def _texts(self, job: Job, places: Iterable[int] = (), seed: int = 0) -> list[Job]:
        """Make the job that draws the text of a reasoned view; none for other views."""
        if self.view == "order":
            return []
        ids = prompt(job, self._words(job, places or range(len(self.labels))) + REASONING, history=True)
        room = self._room(job) - len(ids)
        if room < 1:
            raise Unsupported("the question and its labels leave no room for a text before the letter", "text_tokens")
        sampling = replace(
            job.sampling, temperature=self.temperature, max_tokens=min(self.text_tokens, room), seed=seed, min_tokens=0
        )
        return [replace(job, prompt_ids=ids, sampling=sampling)]

    def _room(self, job: Job) -> int:
        """Return the tokens of the context that a text and its prompt may take."""
        return job.writer.context_length - len(job.writer.tokens.encode_plain(f"\n{PREFIX}")) - 1

    def _words(self, job: Job, places: Iterable[int]) -> str:
        options = "\n".join(f"{letter}. {self.labels[i]}" for letter, i in zip(LETTERS, places, strict=False))
        return f"{asked(job)}\n\n{self.instruction}\n{options}".strip()

    def _prompt(self, job: Job, places: Iterable[int]) -> tuple[int, ...]:
        ids = prompt(job, self._words(job, places) + LETTER, history=True)
        return (*ids, *job.writer.tokens.encode_plain(PREFIX))

    def _key(self, job: Job) -> str:
        """Name what a prior depends on: the model, the labels in their order, and how views are made."""
        parts = (job.engine, self.view, self.instruction, str(self.slots), *self.labels)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    async def _bank(self, job: Job) -> tuple[LabelBank, Store | None]:
        """Read the sure predictions that are kept; an empty bank where nothing is to be kept."""
        bank = LabelBank(len(self.labels), self.slots, self.margin)
        if job.services.stores is None or self.measure != "adte" or self.prior is not None:
            return bank, None
        store = job.services.stores.open(STORE, job.caller.owner)
        key = self._key(job)
        for name, kept in (await store.items(f"{key}/")).items():
            if name == f"{key}/entered":
                bank.entered = int(kept)
                continue
            label, slot = map(int, name.split("/")[1:])
            bank.margins[label, slot], bank.rows[label, slot] = kept["margin"], kept["p"]
        return bank, store
