"""Gates that ask sentence by sentence: FLARE (arXiv 2305.06983) and DRAGIN (arXiv 2403.10081).

A sentence is drafted after what is written; if its gate fires, passages are looked up and the sentence is written anew
with them in front of the question; then the next one. What is written stays. The first sentence, too, is drafted
without passages: FLARE's retrieval before the first step, which would make every request retrieve, is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from waver.engines.base import Step
from waver.policies.base import Proceed
from waver.policies.job import Job, continuation, within_answer
from waver.policies.retrieve.draft import ends
from waver.policies.retrieve.gates import weighted_entropies
from waver.policies.retrieve.lookup import Lookup
from waver.retrieval.words import COMMON

END = re.compile(r"[.!?…][\"'”’)\]]*\s|\n")
"""A sentence ends where white space follows its mark."""
UNSURE = 0.4
"""FLARE leaves tokens of at most this probability out of its query."""
MOST_WORDS = 35
"""DRAGIN's query has at most so many words."""
FUNCTION_WORDS = COMMON | frozenset(
    "about above after again against all also am any because been before being below between both can could did do "
    "does doing down during each few from further had has have having he her here hers him his how i its just may me "
    "might more most must my nor now off once only other our out over own same shall she should so some than them "
    "through too under until up us very was we were what when where which while who whom whose why would you "
    "your".split()
)
"""Words without content of their own: DRAGIN keeps nouns, verbs, adjectives, names and numbers. This list stands in for
its tagger."""


async def by_sentence(
    job: Job, proceed: Proceed, lookup: Lookup, gate: Flare | Dragin, longest: int
) -> AsyncGenerator[Step, None]:
    """The answer, sentence by sentence of at most `longest` tokens."""
    assert job.question is not None
    question = job.question.text
    first = await lookup.summarised()
    first = replace(first, sampling=replace(first.sampling, logprobs=True))
    written: list[int] = []
    scores: list[float] = []
    lookup.record |= {"sentences": 0, "retrievals": 0}
    while True:
        draft = await _sentence(first, proceed, written, longest)
        score, query = await gate(job, [*first.prompt_ids, *written], draft)
        scores.append(score)
        lookup.decided(max(scores) if gate.above else min(scores))
        lookup.record["sentences"] += 1
        if query is not None:
            second = await lookup.led(query or question)
            if second is not None and second.sampling.max_tokens > len(written):
                lookup.record["retrievals"] += 1
                job.report.discarded += len(draft)
                draft = await _sentence(second, proceed, written, longest)
        for step in draft:
            written.append(step.token)
            step = within_answer(step, first, written)
            yield step
            if step.finish:
                return


async def _sentence(job: Job, proceed: Proceed, written: Sequence[int], longest: int) -> list[Step]:
    """The steps of the next sentence."""
    stream, text = job.writer.tokens.stream(), ""
    steps: list[Step] = []
    async with aclosing(proceed(continuation(job, written, job.engine))) as drafted:
        async for step in drafted:
            text = (text + stream.push(step.token)).lstrip()
            if steps and END.search(text) and not text[-1].isspace():
                break  # the next sentence has begun: this token is its first
            steps.append(step)
            if step.finish or text.endswith("\n") or len(steps) == longest:
                break
    return steps


@dataclass(frozen=True)
class Flare:
    """Fires where the least likely token of a sentence has a probability of at most `limit`; looks up the sentence
    without its unlikely tokens."""

    limit: float
    above: ClassVar[bool] = False
    """Scores below fire."""

    async def __call__(self, job: Job, before: Sequence[int], draft: Sequence[Step]) -> tuple[float, str | None]:
        likely = {i: math.exp(step.logprob) for i, step in enumerate(draft) if not ends(step, job)}
        score = min(likely.values(), default=1.0)
        if score > self.limit:
            return score, None
        kept = [draft[i].token for i, probability in likely.items() if probability > UNSURE]
        return score, job.writer.tokens.decode(kept).strip()


@dataclass(frozen=True)
class Dragin:
    """Fires on a content word whose entropy, weighted by the attention that later words pay it, is above `limit`; looks
    up the words that it attends to itself."""

    limit: float
    above: ClassVar[bool] = True
    """Scores above fire."""

    async def __call__(self, job: Job, before: Sequence[int], draft: Sequence[Step]) -> tuple[float, str | None]:
        engine = job.writer
        told = [step for step in draft if not ends(step, job)]
        words = _words([engine.tokens.token_str(step.token) for step in told])
        if not words:
            return 0.0, None
        weights = await engine.attention([*before, *(step.token for step in told)], len(before))
        received = weights[:, :, len(before) :].amax(dim=1).mean(dim=0).tolist()
        scores = weighted_entropies(
            [sum(received[i] for i in word.tokens) for word in words],
            [sum(told[i].entropy for i in word.tokens) / len(word.tokens) for word in words],
        )
        telling = [(score, word) for score, word in zip(scores, words, strict=True) if word.telling]
        fired = [word for score, word in telling if score > self.limit]
        score = max((score for score, _ in telling), default=0.0)
        return score, self._query(
            job, [*before, *(s.token for s in told)], weights, fired, len(before)
        ) if fired else None

    def _query(self, job: Job, ids: Sequence[int], weights: torch.Tensor, fired: Sequence[Word], start: int) -> str:
        """The content words, from the question on, that the words that fired attend to most, in the text's order."""
        assert job.question is not None
        pieces = [job.writer.tokens.token_str(token) for token in ids]
        attended, start = torch.zeros(len(ids)), len(ids) - weights.shape[1]
        for word in fired:
            reach = start + word.tokens[0]
            attended[:reach] += weights[:, word.tokens, :reach].mean(dim=(0, 1))
        asked = max("".join(pieces).rfind(job.question.text), 0)
        known = [word for word in _words(pieces) if word.start >= asked and word.telling]
        most = sorted(known, key=lambda word: -float(attended[word.tokens].sum()))[:MOST_WORDS]
        return " ".join(word.text for word in sorted(most, key=lambda word: word.start))


@dataclass(frozen=True)
class Word:
    """A word, where it begins in the text, and the tokens that spell it."""

    text: str
    start: int
    tokens: list[int]

    @property
    def telling(self) -> bool:
        return self.text.lower() not in FUNCTION_WORDS


def _words(pieces: Sequence[str]) -> list[Word]:
    """The words that tokens spell."""
    owner = [i for i, piece in enumerate(pieces) for _ in piece]
    found = re.finditer(r"[^\W_]+", "".join(pieces))
    return [Word(m.group(), m.start(), list(dict.fromkeys(owner[m.start() : m.end()]))) for m in found]
