"""L-RAG, arXiv 2601.06551: answer first, and look things up only where that answer wavers.

Tier 1 answers from the question and, where `documents` are named, their summaries. Over the first tokens of that
answer, its draft, with H_t the entropy of the raw next-token distribution:

    U = (1/T) Σ_{t<=T} H_t      T: at most `draft_tokens`, up to a line's end; the stop token is left out
    U <= threshold: the draft is the answer, and goes on as it is written
    U >  threshold: tier 2: `top_k` passages for the question, quoted in front of it; the draft is thrown away

Details:
- The paper gives two thresholds, 0.5 and 1.0, without their unit, and neither pooling, draft length nor prompts: those
  here are reconstructions, and each is a parameter. A threshold fits one model, template and pooling (`waver
  calibrate`).
- The gate speaks as soon as it cannot but fire, or once the draft is complete; nothing is streamed before. An empty
  draft retrieves. Where no passage is found the first tier answers, and the report's `passages` are empty.
- The draft is drawn as the request says; its entropies are those of the raw distribution. Under `ead` both engines
  simply go on after it.
- Both prompts are the same up to the first passage, instruction and summaries included, so that a prefix cache serves
  both. The report's `seconds` tell whether the gate pays: on a fast local store it may not.

Other gates (`gate`), each with a threshold of its own:
- `margin`: the mean of exp(-gap) between the two likeliest tokens.
- `targ` (arXiv 2511.09803): a draft without any summary; `signal` is `margin`, `entropy`, or the `variance` of
  `samples` drawn prefixes. Its formulas are reconstructions.
- `seakr` (arXiv 2406.19215): how far the hidden states of `samples` drawn answers lie apart, in the middle layer. Needs
  those of all layers. Its queries and re-ranking are left out: the question is what is looked up.
- `flare` and `dragin`, sentence by sentence: `waver.policies.retrieve.sentences`.
- `always`, `never`, `random` (at a `rate`): controls.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from waver.engines.base import Sampling, Step, Unsupported
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job
from waver.policies.retrieve.draft import Draft, ends, tie
from waver.policies.retrieve.gates import Pooling, disagreement, spread
from waver.policies.retrieve.lookup import Lookup, Where, looking
from waver.policies.retrieve.sentences import Dragin, Flare, by_sentence

THRESHOLDS = {"entropy": 0.5, "margin": 0.5, "targ": 0.5, "seakr": -6.0, "flare": 0.8, "dragin": 1.0}
DRAFTS = {"flare": 64, "dragin": 64, "seakr": 100}
DRAFT = 32
NEEDS: dict[str, Literal["attention", "hidden_states"]] = {"dragin": "attention", "seakr": "hidden_states"}


class LRAG(Where, Policy):
    """Look things up in a collection only when the model wavers without them."""

    stage: ClassVar[Stage] = "search"
    paper: ClassVar[str] = "arXiv 2601.06551"

    name: Literal["l_rag"] = "l_rag"
    gate: Literal["entropy", "margin", "flare", "dragin", "seakr", "targ", "always", "never", "random"] = Field(
        default="entropy", description="what tells whether to look things up"
    )
    threshold: float | None = Field(
        default=None,
        description="score above which the gate fires (entropies in nats; flare: a probability, at or below which); "
        f"default: {', '.join(f'{gate} {value:g}' for gate, value in THRESHOLDS.items())}",
    )
    pooling: Pooling = Field(default="mean", description="how the entropies of a draft become one number")
    prefix: int = Field(default=4, ge=1, le=1024, description="tokens that the pooling prefix_k looks at")
    draft_tokens: int | None = Field(
        default=None, ge=1, le=1024, description="most tokens of a draft; default: 32, flare and dragin 64, seakr 100"
    )
    signal: Literal["margin", "entropy", "variance"] = Field(default="margin", description="what targ looks at")
    samples: int = Field(default=20, ge=2, le=64, description="answers that seakr, and targ's variance, draw")
    rate: float = Field(default=0.5, ge=0.0, le=1.0, description="share of requests for which random retrieves")
    expected_rate: float | None = Field(
        default=None, ge=0.0, le=1.0, description="share of requests that retrieved in calibration; it is watched"
    )

    @property
    def limit(self) -> float:
        """The threshold in force."""
        return THRESHOLDS.get(self.gate, 0.0) if self.threshold is None else self.threshold

    @property
    def extra_sequences(self) -> int:
        return self.samples if self.gate == "seakr" or (self.gate, self.signal) == ("targ", "variance") else 0

    @property
    def longest(self) -> int:
        """Most tokens of a draft."""
        return self.draft_tokens or DRAFTS.get(self.gate, DRAFT)

    async def check(self, job: Job) -> None:
        need = NEEDS.get(self.gate)
        if need is not None and need not in job.writer.exposes:
            what = {"attention": "attention weights", "hidden_states": "the hidden states of all layers"}[need]
            raise Unsupported(
                f"the gate {self.gate} needs {what}, which engine {job.engine!r} does not hand out; entropy, margin, "
                "targ and flare do without",
                "gate",
            )
        await looking(self, job)

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        lookup = Lookup(self, job, await looking(self, job), {"gate": self.gate, "threshold": self.limit})
        if self.gate == "flare":
            answer = by_sentence(job, proceed, lookup, Flare(self.limit), self.longest)
        elif self.gate == "dragin":
            answer = by_sentence(job, proceed, lookup, Dragin(self.limit), self.longest)
        else:
            answer = self._two_tiers(job, proceed, lookup)
        async with aclosing(answer) as steps:
            async for step in steps:
                lookup.wrote()
                yield step

    async def _two_tiers(self, job: Job, proceed: Proceed, lookup: Lookup) -> AsyncGenerator[Step, None]:
        assert job.question is not None
        first = job if self.gate == "targ" else await lookup.summarised()
        draft = Draft(self.limit, self.longest, self.pooling if self.gate == "entropy" else "mean", self.prefix)
        fires: bool | None = None  # None: the draft will tell
        match self.gate, self.signal:
            case (("always" | "never" | "random"), _):
                rng = random.Random(f"l_rag:{job.sampling.seed}")
                fires = self.gate == "always" or (self.gate == "random" and rng.random() < self.rate)
                lookup.decided(None)
            case ("seakr", _) | ("targ", "variance"):
                score = await self._sampled(first)
                fires = score > self.limit or None
                lookup.decided(score)
                draft = Draft(math.inf, 1)  # all that is left to ask is whether the answer is empty
            case ("margin", _) | ("targ", "margin"):
                draft.measure = tie
                sampling = replace(first.sampling, top_logprobs=max(first.sampling.top_logprobs, 2))
                first = replace(first, sampling=sampling)
        held: list[Step] = []
        if not fires:
            async with aclosing(proceed(first)) as steps:
                async for step in steps:
                    held.append(step)
                    if fires is None:
                        fires = draft.read(step, first)
                        if fires is not None:
                            lookup.decided(lookup.record.get("score", draft.score))
                    if fires:
                        break
                    if fires is False:
                        for each in held:
                            yield each
                        held.clear()
            if not fires:
                return
        job.report.discarded += len(held)
        second = await lookup.led(job.question.text)
        async with aclosing(proceed(second or first)) as steps:
            async for step in steps:
                yield step

    async def _sampled(self, job: Job) -> float:
        """The score of gates that draw several answers."""
        engine, seed = job.writer, job.sampling.seed
        seakr = self.gate == "seakr"
        shape = {"top_k": 50, "top_p": 0.9} if seakr else {}
        limit = min(self.longest, job.sampling.max_tokens)

        async def one(number: int) -> list[int]:
            sampling = Sampling(1.0, max_tokens=limit, seed=(seed + number) % 2**63, logprobs=False, **shape)  # type: ignore[arg-type]
            async with aclosing(engine.generate(job.prompt_ids, sampling)) as steps:
                drawn = [step async for step in steps]
            job.report.discarded += len(drawn)
            return [step.token for step in drawn if not ends(step, job)]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(1, self.samples + 1)]
        samples = [task.result() for task in tasks if task.result() or not seakr]
        if not seakr:
            return disagreement(samples)
        if not samples:
            return math.inf
        states = await asyncio.gather(*(engine.hidden_state([*job.prompt_ids, *s], depth=0.5) for s in samples))
        return spread(torch.stack(states))
