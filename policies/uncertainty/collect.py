"""Draw evidence of uncertainty through an engine: answers to a question and to other wordings of it."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from waver.concurrency import together
from waver.engines.base import NO_TOKEN, Sampling, Unsupported
from waver.policies.base import Proceed
from waver.policies.budget import Budget, Ledger, metered
from waver.policies.job import Job
from waver.policies.uncertainty.evidence import Evidence, Need, Said
from waver.policies.uncertainty.similarity import Kind, among, between, support
from waver.policies.uncertainty.variants import (
    MOST_SUBSTITUTES,
    PARAPHRASE,
    SUBSTITUTES,
    WORD,
    Gaap,
    exactly,
    gaap,
    keywords,
    listed,
)

Perturbation = Literal["paraphrase", "gaap"]
PARAPHRASE_TOKENS = 64
"""Most tokens of one paraphrase."""
VERDICT = (
    "Question: {question}\nProposed answer: {answer}\nIs the proposed answer: (A) True (B) False\nAnswer with A or B."
)
ALTERNATIVES = 20
"""Likeliest tokens among which the model's verdict is looked for."""


@dataclass(frozen=True)
class Settings:
    """Settings of evidence: how it is drawn."""

    perturbations: int = 9
    replications: int = 5
    temperature: float = 0.7
    answer_tokens: int = 64
    instruction: str = "Answer concisely, with the name or the number only."
    perturb: Perturbation = "paraphrase"
    similarity: Kind = "embedding"


@dataclass(frozen=True)
class Collector:
    """Draws evidence for one job. Everything that it draws goes into the ledger and out of the budget."""

    job: Job
    how: Settings
    ledger: Ledger
    budget: Budget
    seed: int

    async def collect(self, needs: Collection[Need], answer: str, entropies: Sequence[float]) -> Evidence:
        """Draw what measures need.

        Args:
            answer: the answer given, and its tokens' entropies (nats).

        Raises:
            OutOfTokens: the budget is spent. Unsupported: the request has no question, or its engine no room.
        """
        question = asked(self.job)
        out = Evidence(entropies=tuple(entropies) or (0.0,))
        if "variants" in needs or "samples" in needs:
            variants = [question, *(await self.variants(question) if "variants" in needs else [])]
            answers = await self.answers(variants)
            texts = [said.text for own in answers for said in own]
            kind, services = self.how.similarity, self.job.services
            out = replace(
                out,
                variants=tuple(variants),
                answers=tuple(answers),
                inputs=await among(variants, kind, services),
                outputs=await among(texts, kind, services),
                support=await support([said.text for said in answers[0]], kind, services),
            )
        if "verdict" in needs:
            out = replace(out, true=await self._verdict(question, answer))
        return out

    async def answers(self, variants: Sequence[str]) -> list[tuple[Said, ...]]:
        """Answer each wording of a question several times."""
        return list(await together(*(self._answers(i, each) for i, each in enumerate(variants))))

    async def variants(self, question: str) -> list[str]:
        """Make the other wordings of a question."""
        count = self.how.perturbations
        if self.how.perturb == "gaap":
            return await self._gaap(question, count)
        found: list[str] = []
        for attempt in range(3):
            missing = count - len(found)
            words = PARAPHRASE.format(count=missing, question=question)
            said = await self._say(words, missing * PARAPHRASE_TOKENS, self.how.temperature, f"paraphrase:{attempt}")
            found += [each for each in listed(said.text) if each not in (question, *found)][:missing]
            if len(found) == count:
                break
        return exactly(found, count, question)

    async def _gaap(self, question: str, count: int) -> list[str]:
        kind, services = self.how.similarity, self.job.services

        async def alike(texts: Sequence[str]) -> list[float]:
            return [float(each) for each in (await between(texts, [question], kind, services))[:, 0]]

        tokens = WORD.findall(question)
        places = keywords(tokens, await alike(tokens), Gaap().ratio)
        words = list(dict.fromkeys(tokens[i] for i in places))
        lists = await together(*(self._substitutes(word) for word in words))
        rng = random.Random(f"gaap:{self.seed}")
        return await gaap(question, alike, dict(zip(words, lists, strict=True)), count, rng)

    async def _substitutes(self, word: str) -> list[str]:
        asked = SUBSTITUTES.format(count=MOST_SUBSTITUTES, word=word)
        said = await self._say(asked, 8 * MOST_SUBSTITUTES, self.how.temperature, f"substitutes:{word}")
        found = (each.strip(" .\"'\n") for each in said.text.replace("\n", ",").split(","))
        return list(dict.fromkeys(each for each in found if each and each != word and len(each.split()) == 1))[
            :MOST_SUBSTITUTES
        ]

    async def _answers(self, state: int, question: str) -> tuple[Said, ...]:
        words = f"{question}\n{self.how.instruction}".strip()
        ids = prompt(self.job, words, history=True)
        return tuple(
            await together(
                *(
                    self._draw(ids, self.how.answer_tokens, self.how.temperature, f"answer:{state}:{r}")
                    for r in range(self.how.replications)
                )
            )
        )

    async def _verdict(self, question: str, answer: str) -> float:
        """Ask the model whether its answer is true: P(A) / (P(A) + P(B)) at the first token."""
        words = VERDICT.format(question=question, answer=answer.strip())
        ids = prompt(self.job, words, history=False)
        sampling = Sampling(temperature=0.0, max_tokens=1, top_logprobs=ALTERNATIVES)
        own = replace(self.job, prompt_ids=ids, sampling=sampling)
        steps, _ = await metered(own, Proceed(), self.ledger, self.budget)
        tokens, mass = self.job.writer.tokens, {"A": 0.0, "B": 0.0}
        for token, logprob in steps[0].top_logprobs:
            letter = tokens.decode([token]).strip(" (")[:1].upper()
            if letter in mass:
                mass[letter] += math.exp(logprob)
        whole = sum(mass.values())
        return mass["A"] / whole if whole else 0.5

    async def _say(self, words: str, most: int, temperature: float, purpose: str) -> Said:
        return await self._draw(prompt(self.job, words, history=False), most, temperature, purpose)

    async def _draw(self, ids: Sequence[int], most: int, temperature: float, purpose: str) -> Said:
        writer = self.job.writer
        room = writer.context_length - len(ids)
        if room < 1:
            raise Unsupported("the question leaves no room in the context for the answers that measure uncertainty")
        seed = random.Random(f"uncertainty:{self.seed}:{purpose}").getrandbits(32)
        sampling = Sampling(temperature=temperature, max_tokens=min(most, room), seed=seed)
        own = replace(self.job, prompt_ids=tuple(ids), sampling=sampling)
        steps, _ = await metered(own, Proceed(), self.ledger, self.budget)
        drawn = [step for step in steps if step.token != NO_TOKEN]
        text = writer.tokens.decode([step.token for step in drawn]).strip()
        return Said(text, sum(step.logprob for step in drawn), len(drawn))


def asked(job: Job) -> str:
    """Return the question of a request.

    Raises:
        Unsupported: it is given as token ids.
    """
    if job.question is None or not job.question.text.strip():
        raise Unsupported("there is no question to ask in other words: send a user's message, or a prompt as text")
    return job.question.text


def prompt(job: Job, words: str, history: bool) -> tuple[int, ...]:
    """Make a prompt of the user's turn `words`, by the chat template where the request is a conversation.

    Args:
        history: keep what was said before the user's last message, and what instructs the model.
    """
    tokens = job.writer.tokens
    if not job.messages and history:
        return tuple(tokens.encode(words))
    turn: Mapping[str, Any] = {"role": "user", "content": words}
    before: list[Mapping[str, Any]] = []
    if history:
        last = max((i for i, each in enumerate(job.messages) if each.get("role") == "user"), default=0)
        before = list(job.messages[:last])
    try:
        return tuple(tokens.chat([*before, turn]))
    except ValueError as error:
        if before:
            raise Unsupported(str(error)) from error
        return tuple(tokens.encode(words))
