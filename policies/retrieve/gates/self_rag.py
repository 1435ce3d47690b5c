"""Self-RAG (arXiv 2310.11511): ask the model itself, by the tokens that it was trained to say so with.

    score = P([Retrieval]) / (P([Retrieval]) + P([No Retrieval]))      at the answer's first position

The released script for short answers divides log-probabilities instead; this is the paper's formula. Its critique of
passages, by further tokens, is left out. A model that was not trained with these tokens is refused.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

from waver.engines.base import Unsupported
from waver.policies.job import Job
from waver.policies.retrieve.gates.base import Gate, Verdict
from waver.policies.retrieve.gates.draft import Draft

RETRIEVE, KEEP = "[Retrieval]", "[No Retrieval]"
LIKELIEST = 20
"""Tokens whose probabilities are looked at; one that is not among them counts as 0."""


def wish(retrieve: float, keep: float) -> float:
    """Compute the score from the probabilities of the two tokens; 0 where neither is likely."""
    return retrieve / (retrieve + keep) if retrieve + keep > 0 else 0.0


class SelfRagGate(Gate):
    """The model's own wish for passages, by the reflection tokens of Self-RAG models."""

    name: ClassVar[str] = "self_rag"
    paper: ClassVar[str | None] = "arXiv 2310.11511"
    threshold: ClassVar[float | None] = 0.2
    draft_tokens: ClassVar[int] = 1

    @property
    def longest(self) -> int:
        return 1

    def check(self, job: Job) -> None:
        known = job.writer.tokens.tokenizer.get_vocab()
        if missing := [name for name in (RETRIEVE, KEEP) if name not in known]:
            raise Unsupported(
                f"the gate self_rag reads the token {missing[0]}, which the model of {job.engine!r} was not trained "
                "with: it wants a Self-RAG model; the gate entropy works with any",
                "gate",
            )

    def prepare(self, job: Job) -> Job:
        return replace(job, sampling=replace(job.sampling, top_logprobs=max(job.sampling.top_logprobs, LIKELIEST)))

    async def decide(self, draft: Draft) -> Verdict | None:
        if not draft.steps:
            return None
        vocabulary = draft.job.writer.tokens.tokenizer.get_vocab()
        likely = dict(draft.steps[0].top_logprobs)
        shares = [
            math.exp(likely[token]) if (token := vocabulary[name]) in likely else 0.0 for name in (RETRIEVE, KEEP)
        ]
        score = wish(*shares)
        return Verdict(score > self.settings.threshold, score)
