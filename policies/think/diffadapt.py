"""DiffAdapt, arXiv 2510.19669: think as much as the question needs.

A probe reads the model's last hidden state behind the prompt and a few words that ask how hard the question is, and one
of three strategies (`waver.policies.think.strategies`) answers:

    logits = W2 relu(W1 h + b1) + b2 + bonus          (waver.engines.probe)
    strategy = argmax softmax(logits), or normal where the largest probability is below `min_confidence`

Details:
- The probe's words and a strategy's follow the same prompt, so a prefix cache reads the question once. The paper's code
  gives the strategies a system prompt that its probe prompt lacks, and so reads it twice; here there is none but the
  client's own, which both see.
- Where a strategy's words begin with the probe's (or the probe has none), one pass serves both: the answer is begun
  with the strategy that most questions lately came to, its pass also brings the state that the probe reads, and the
  first token waits for what the probe says. Where it says otherwise, that token is discarded and the answer begun anew.
- A probe fits one model and template, and stands in the configuration (`probes`); requests only name it. Under `ead` it
  may be that of either engine. A prompt of text or ids is taken as it is: it should be rendered by the chat template.
- `labels` are the rule that a probe's training labels came from: the paper's, in which easy is a catch-all; one in
  which only sure questions are easy; or what the cheapest right strategy was.
- Under `l_rag` it judges the bare question, before anything is looked up.
- Where no probe can be read, `fallback: draft` takes the mean entropy of a short greedy draft instead: below
  `draft_easy` easy, above `draft_hard` hard. This is a reconstruction, and its thresholds belong to one model.
- An answer that its share of `max_tokens` cuts off is cut off; the paper's code then forces an answer. That is a policy
  of its own, `forced_answer`, so that it can be on for every policy or none.
- `shuffled` and `oracle` are for evaluation: the same mix of decisions, drawn blindly; and the best of all three.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from waver.engines.base import ContextExceeded, Engine, Sampling, Step, Unsupported
from waver.engines.decision import Decision
from waver.engines.probe import Probe
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.helpers import draft
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.think.difficulty import DIFFICULTIES, Difficulty, usual_difficulty
from waver.policies.think.head_start import HeadStart
from waver.policies.think.oracle import best
from waver.policies.think.strategies import Easy, Hard, Normal, asked
from waver.policies.thoughts import TraceEntropy

ANY = ("auto", "shuffled", "oracle")
"""Under these every strategy may be chosen."""
MOST_BONUS = 1000.0
"""Beyond this a bonus says no more."""


@dataclass
class _Judgement:
    """Judgement of one prompt: the first choice makes it, the others wait for it."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    found: tuple[Difficulty, dict[str, Any]] | None = None


@dataclass
class _Judgements:
    """Judgements that the choices of one request share, by prompt. Keeps a reference to its policy, by whose identity
    it is found."""

    policy: DiffAdapt
    by_prompt: defaultdict[tuple[int, ...], _Judgement] = field(default_factory=lambda: defaultdict(_Judgement))


class DiffAdapt(Policy):
    """Choose how to think by how hard the question is: answer at once, step by step, or only the key route."""

    stage: ClassVar[Stage] = "prompt"
    takes_pictures: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2510.19669"
    probe_fields: ClassVar[tuple[str, ...]] = ("probe",)
    evaluation: ClassVar[Mapping[str, tuple[str, ...]]] = {"strategy": ("shuffled", "oracle"), "mix": (), "answer": ()}
    defaults_for: ClassVar[str | None] = (
        "strategies: Qwen3-4B on mathematics, as in the paper; thresholds of a draft: no model. `waver train probe` "
        "makes a probe, and `waver calibrate policy diffadapt` compares it with the fixed strategies"
    )
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_strategies", "Answers by way of thinking.", ("strategy",)),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "strategy": "the strategy that answered",
        "difficulty": "what judged the question, and how",
        "trace_entropy": "mean entropy (nats) and tokens of `thinking`, and of the `answer` behind it, apart",
    }

    name: Literal["diffadapt"] = "diffadapt"
    strategy: Literal["auto", "easy", "normal", "hard", "shuffled", "oracle"] = Field(
        default="auto", description="how to think; auto: a probe decides; shuffled and oracle: for evaluation"
    )
    probe: str | None = Field(
        default=None, description="a probe of the configuration; default: the first with these labels that fits"
    )
    labels: Literal["paper", "strict_easy", "oracle"] = Field(
        default="paper", description="the rule of the probe's training labels"
    )
    min_confidence: float = Field(
        default=0.5, ge=0.0, le=1.0, description="probability of the likeliest class below which it is normal"
    )
    bonus: dict[Difficulty, float] = Field(default={}, description="what is added to the logits of classes")
    easy: Easy = Field(default=Easy(), description="how an easy question is answered")
    normal: Normal = Field(default=Normal(), description="how a normal question is answered")
    hard: Hard = Field(default=Hard(), description="how a hard question is answered")
    fallback: Literal["refuse", "draft"] = Field(default="refuse", description="where no probe can be read")
    draft_tokens: int = Field(default=16, ge=1, le=1024, description="tokens of that draft")
    draft_easy: float = Field(default=0.1, ge=0.0, description="mean entropy below which a draft is easy (nats)")
    draft_hard: float = Field(default=0.6, ge=0.0, description="mean entropy above which a draft is hard (nats)")
    mix: dict[Difficulty, float] = Field(
        default={"easy": 1.0, "normal": 1.0, "hard": 1.0}, description="weights with which shuffled draws"
    )
    answer: str | None = Field(default=None, max_length=4096, description="the right answer, which the oracle knows")

    @model_validator(mode="after")
    def _check(self) -> DiffAdapt:
        if self.draft_easy > self.draft_hard:
            raise ValueError("draft_easy must not be above draft_hard")
        if not 0 < sum(self.mix.values()) < math.inf or min(self.mix.values()) < 0:
            raise ValueError("the weights of mix must not be negative, and one of them above 0")
        if max(map(abs, self.bonus.values()), default=0.0) > MOST_BONUS:
            raise ValueError(f"a bonus must lie between -{MOST_BONUS:g} and {MOST_BONUS:g}")
        if self.strategy == "oracle" and not (self.answer or "").strip():
            raise ValueError('the oracle needs the right answer: "answer": "…"')
        return self

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        strategy = report.extra.get("strategy")
        return () if not strategy else (("waver_strategies", (strategy,)),)

    async def check(self, job: Job) -> None:
        if self.strategy == "auto" and (found := await self._reader(job)) is not None:
            probe_prompt(job, *found)

    def possible_jobs(self, job: Job) -> list[Job]:
        return list(self._ways(job).values())

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        ways = self._ways(job)
        if self.strategy == "oracle":
            assert self.answer is not None
            answer = best(job, ways, proceed, self.answer)
        elif self.strategy == "auto":
            answer = await self._fitting(job, ways, proceed)
        else:
            job.report.extra["strategy"] = chosen = self._drawn(job) if self.strategy == "shuffled" else self.strategy
            answer = proceed(ways[chosen])
        if (taken := job.report.extra.get("strategy")) in ways:
            job.report.think_open = job.writer.tokens.in_think(ways[taken].prompt_ids)
        decided = self._decisions(job)
        parts: TraceEntropy | None = None
        async with aclosing(answer) as steps:
            async for step in steps:
                if parts is None:  # the oracle has chosen by now
                    parts = TraceEntropy(job.writer.tokens, ways[job.report.extra["strategy"]].prompt_ids)
                    job.report.extra["trace_entropy"] = parts.record
                parts.add(step.token, step.entropy)
                yield step.decided(*decided)
                decided = ()

    def _decisions(self, job: Job) -> tuple[Decision, ...]:
        """Describe the choice that was made: by the probability of the likeliest class, or the entropy of a draft."""
        chosen, record = job.report.extra.get("strategy"), job.report.extra.get("difficulty", {})
        if chosen is None:
            return ()
        if "probabilities" in record:
            likeliest = max(record["probabilities"].values())
            return (Decision(self.name, chosen, likeliest, self.min_confidence, record["engine"]),)
        return (Decision(self.name, chosen, record.get("draft_entropy"), None, record.get("engine")),)

    def _ways(self, job: Job) -> dict[str, Job]:
        """Make the job in each way that may be chosen.

        Raises:
            Unsupported: one of them has no room.
        """
        named = {"easy": self.easy, "normal": self.normal, "hard": self.hard}
        return {name: asked(job, how) for name, how in named.items() if self.strategy in (name, *ANY)}

    def _drawn(self, job: Job) -> str:
        rng = random.Random(f"diffadapt:{job.sampling.seed}")
        return rng.choices(list(self.mix), list(self.mix.values()))[0]

    async def _fitting(self, job: Job, ways: Mapping[str, Job], proceed: Proceed) -> AsyncGenerator[Step, None]:
        """Decode the answer in the way that fits the question."""
        begun, judged = None, job.shared.setdefault((self.name, id(self)), _Judgements(self)).by_prompt[job.prompt_ids]
        async with judged.turn:
            if judged.found is None:
                since = time.perf_counter()
                begun, chosen, record = await self._judge(job, ways, proceed)
                judged.found = chosen, record | {"seconds": time.perf_counter() - since}
        chosen, record = judged.found
        job.report.extra |= {"strategy": chosen, "difficulty": record}
        return proceed(ways[chosen]) if begun is None else begun.answer()

    async def _judge(
        self, job: Job, ways: Mapping[str, Job], proceed: Proceed
    ) -> tuple[HeadStart | None, Difficulty, dict[str, Any]]:
        """Judge the question. Returns the answer, where it has been begun in the right way; the class of the question,
        and what a report says."""
        found = await self._reader(job)
        if found is None:
            return None, *await self._drafted(job)
        name, engine = found
        read = probe_prompt(job, name, engine)
        guess = self._guess(job, name, read, ways, proceed) if engine.name == job.engine else None
        if guess is None:
            return None, *self._probed(job, name, engine, await engine.hidden_state(read))
        way = ways[guess]
        begun = HeadStart(replace(way, sampling=replace(way.sampling, state_of=read)), proceed)
        try:
            state = await begun.state()
            if state is None:  # a cache held the question
                state = await engine.hidden_state(read)
        except BaseException:
            await begun.drop()
            raise
        chosen, record = self._probed(job, name, engine, state)
        record["head_start"] = guess
        if guess == chosen:
            return begun, chosen, record
        await begun.drop()
        return None, chosen, record

    def _guess(
        self, job: Job, name: str, read: tuple[int, ...], ways: Mapping[str, Job], proceed: Proceed
    ) -> Difficulty | None:
        """Choose the strategy to begin with before the probe is read; None where the answer's first pass would not read
        what the probe does, or where no strategy is likely enough."""
        usual = usual_difficulty(job.services.probes[name].recent)
        if usual is None or any(policy.stage in ("search", "decode") for policy in proceed.policies):
            return None
        return usual if ways[usual].prompt_ids[: len(read)] == read else None

    async def _reader(self, job: Job) -> tuple[str, Engine] | None:
        """Choose a probe, by name, and the engine that it reads; None: a draft takes its place.

        Raises:
            Unsupported: no probe can be read.
        """
        probes = {
            name: probe
            for name, probe in job.services.probes.items()
            if (probe.record.labels == self.labels if self.probe is None else name == self.probe)
        }
        reasons = ["a probe reads no pictures"] if job.sampling.pictures else []
        if job.sampling.pictures:
            probes = {}
        for engine in dict.fromkeys((job.engine, *job.report.parameters)):
            for name, probe in probes.items():
                try:
                    check_classes(name, probe)
                    await probe.check(job.services.engines[engine])
                except Unsupported as error:
                    reasons.append(str(error))
                else:
                    return name, job.services.engines[engine]
        if self.fallback == "draft":
            return None
        reason = reasons[0] if reasons else f"no probe with the labels {self.labels} is configured"
        raise Unsupported(f'{reason}; name a strategy, or let a draft decide: "fallback": "draft"', "policy")

    def _probed(self, job: Job, name: str, engine: Engine, state: torch.Tensor) -> tuple[Difficulty, dict[str, Any]]:
        probe = job.services.probes[name]
        logits = probe(state) + torch.tensor([self.bonus.get(each, 0.0) for each in DIFFICULTIES])
        probabilities = dict(zip(DIFFICULTIES, logits.softmax(-1).tolist(), strict=True))
        likeliest = max(DIFFICULTIES, key=lambda each: probabilities[each])
        chosen = likeliest if probabilities[likeliest] >= self.min_confidence else "normal"
        probe.recent.append(chosen)
        return chosen, {"probe": name, "engine": engine.name, "probabilities": probabilities}

    async def _drafted(self, job: Job) -> tuple[Difficulty, dict[str, Any]]:
        engine = job.writer
        limit = min(self.draft_tokens, job.sampling.max_tokens)
        sampling = Sampling(temperature=0.0, max_tokens=limit, logprobs=False, pictures=job.sampling.pictures)
        entropies = [step.entropy for step in await draft(job, job.prompt_ids, sampling)]
        mean = sum(entropies) / len(entropies)
        chosen: Difficulty = "easy" if mean < self.draft_easy else "hard" if mean > self.draft_hard else "normal"
        return chosen, {"engine": engine.name, "draft_entropy": mean}


def check_classes(name: str, probe: Probe) -> None:
    """Check that a probe tells the difficulties apart.

    Raises:
        Unsupported: it was trained for other classes.
    """
    if probe.record.classes not in ((), DIFFICULTIES) or probe.outputs != len(DIFFICULTIES):
        classes = ", ".join(probe.record.classes) or f"{probe.outputs} classes"
        raise Unsupported(f"the probe {name!r} tells {classes} apart, and not {', '.join(DIFFICULTIES)}", "policy")


def probe_prompt(job: Job, name: str, engine: Engine) -> tuple[int, ...]:
    """Make what a probe reads: the prompt and its own words behind it.

    Raises:
        ContextExceeded: the engine's context has no room for both.
    """
    words = engine.tokens.encode(job.services.probes[name].record.words, add_special_tokens=False)
    if len(job.prompt_ids) + len(words) > engine.context_length:
        found = f"the prompt has {len(job.prompt_ids)} tokens and the words of the probe {name!r} {len(words)}"
        raise ContextExceeded(engine.context_length, found, "policy")
    return (*job.prompt_ids, *words)
