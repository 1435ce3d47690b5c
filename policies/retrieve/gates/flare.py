"""FLARE (arXiv 2305.06983): look a sentence up where one of its tokens is unlikely.

Its retrieval before the first sentence, which would make every request retrieve, is left out.
"""

from __future__ import annotations

import math
from typing import ClassVar

from waver.policies.retrieve.gates.base import Gate, Verdict
from waver.policies.retrieve.gates.draft import Draft

UNSURE = 0.4
"""Tokens of at most this probability are left out of the query."""


class FlareGate(Gate):
    """The probability of a sentence's least likely token; looks up the sentence without its unlikely tokens."""

    name: ClassVar[str] = "flare"
    paper: ClassVar[str | None] = "arXiv 2305.06983"
    threshold: ClassVar[float | None] = 0.8
    draft_tokens: ClassVar[int] = 64
    above: ClassVar[bool] = False
    per_sentence: ClassVar[bool] = True

    async def decide(self, draft: Draft) -> Verdict | None:
        likely = [(step.token, math.exp(step.logprob)) for step in draft.told]
        score = min((probability for _, probability in likely), default=1.0)
        if score > self.settings.threshold:
            return Verdict(False, score)
        kept = [token for token, probability in likely if probability > UNSURE]
        return Verdict(True, score, draft.job.writer.tokens.decode(kept).strip())
