"""DRAGIN (arXiv 2403.10081): look up what a sentence's uncertain words attend to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from waver.engines.base import Inside
from waver.policies.job import Job
from waver.policies.retrieve.gates.base import Gate, Verdict
from waver.policies.retrieve.gates.draft import Draft
from waver.retrieval.words import COMMON

MOST_WORDS = 35
"""Most words of the query."""
FUNCTION_WORDS = COMMON | frozenset(
    "about above after again against all also am any because been before being below between both can could did do "
    "does doing down during each few from further had has have having he her here hers him his how i its just may me "
    "might more most must my nor now off once only other our out over own same shall she should so some than them "
    "through too under until up us very was we were what when where which while who whom whose why would you "
    "your".split()
)
"""Words without content of their own: DRAGIN keeps nouns, verbs, adjectives, names and numbers. This list stands in for
its tagger."""


def weighted_entropies(attention: Sequence[float], entropies: Sequence[float]) -> list[float]:
    """Compute DRAGIN's S of each word of a sentence: its share of the attention that the words receive, times their
    number, times its entropy."""
    total = sum(attention) or 1.0
    return [a / total * len(attention) * h for a, h in zip(attention, entropies, strict=True)]


class DraginGate(Gate):
    """The entropy of a content word, weighted by the attention that later words of the sentence pay it."""

    name: ClassVar[str] = "dragin"
    paper: ClassVar[str | None] = "arXiv 2403.10081"
    threshold: ClassVar[float | None] = 1.0
    draft_tokens: ClassVar[int] = 64
    needs: ClassVar[Inside | None] = "attention"
    per_sentence: ClassVar[bool] = True

    async def decide(self, draft: Draft) -> Verdict | None:
        engine, told = draft.job.writer, draft.told
        words = _words([engine.tokens.token_str(step.token) for step in told])
        if not words:
            return Verdict(False, 0.0)
        ids = [*draft.before, *(step.token for step in told)]
        weights = await engine.attention(ids, len(draft.before))
        received = weights[:, :, len(draft.before) :].amax(dim=1).mean(dim=0).tolist()
        scores = weighted_entropies(
            [sum(received[i] for i in word.tokens) for word in words],
            [sum(told[i].entropy for i in word.tokens) / len(word.tokens) for word in words],
        )
        content = [(score, word) for score, word in zip(scores, words, strict=True) if word.has_content]
        fired = [word for score, word in content if score > self.settings.threshold]
        score = max((score for score, _ in content), default=0.0)
        return Verdict(True, score, _query(draft.job, ids, weights, fired)) if fired else Verdict(False, score)


def _query(job: Job, ids: Sequence[int], weights: torch.Tensor, fired: Sequence[Word]) -> str:
    """Join the content words, from the question on, that the words that fired attend to most, in the text's order."""
    assert job.question is not None
    pieces = [job.writer.tokens.token_str(token) for token in ids]
    attended, start = torch.zeros(len(ids)), len(ids) - weights.shape[1]
    for word in fired:
        reach = start + word.tokens[0]
        attended[:reach] += weights[:, word.tokens, :reach].mean(dim=(0, 1))
    asked = max("".join(pieces).rfind(job.question.text), 0)
    known = [word for word in _words(pieces) if word.start >= asked and word.has_content]
    most = sorted(known, key=lambda word: -float(attended[word.tokens].sum()))[:MOST_WORDS]
    return " ".join(word.text for word in sorted(most, key=lambda word: word.start))


@dataclass(frozen=True)
class Word:
    """A word, where it begins in the text, and the tokens that spell it."""

    text: str
    start: int
    tokens: list[int]

    @property
    def has_content(self) -> bool:
        return self.text.lower() not in FUNCTION_WORDS


def _words(pieces: Sequence[str]) -> list[Word]:
    """Split the text that tokens spell into words."""
    owner = [i for i, piece in enumerate(pieces) for _ in piece]
    found = re.finditer(r"[^\W_]+", "".join(pieces))
    return [Word(m.group(), m.start(), list(dict.fromkeys(owner[m.start() : m.end()]))) for m in found]
