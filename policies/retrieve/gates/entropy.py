"""The entropy gate of L-RAG (arXiv 2601.06551): look passages up where the draft's mean entropy is high.

    U = (1/T) Σ_{t<=T} H_t      T: at most `draft_tokens`; the stop token is left out

The paper gives neither unit nor pooling: both are reconstructions, and parameters.
"""

from __future__ import annotations

from typing import ClassVar

from waver.policies.retrieve.gates.base import Gate, Verdict
from waver.policies.retrieve.gates.draft import Draft, above_threshold


class EntropyGate(Gate):
    """The pooled entropy of the draft's tokens (nats)."""

    name: ClassVar[str] = "entropy"
    paper: ClassVar[str | None] = "arXiv 2601.06551"
    threshold: ClassVar[float | None] = 0.5

    @property
    def longest(self) -> int:
        settings = self.settings
        shorter = {"first": 1, "prefix_k": min(settings.prefix, settings.draft_tokens)}
        return shorter.get(settings.pooling, settings.draft_tokens)

    async def decide(self, draft: Draft) -> Verdict | None:
        values = [step.entropy for step in draft.told]
        settings = self.settings
        found = above_threshold(values, draft, settings.threshold, settings.pooling, settings.prefix)
        return None if found is None else Verdict(*found)
