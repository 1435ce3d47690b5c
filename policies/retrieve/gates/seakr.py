"""SeaKR (arXiv 2406.19215): gate on how far the hidden states of drawn answers lie apart.

Its queries and its re-ranking are left out: the question is what is looked up.
"""

from __future__ import annotations

import asyncio
import math
from typing import ClassVar

import torch

from waver.engines.base import Inside
from waver.policies.job import Job
from waver.policies.retrieve.gates.base import Gate, GateSettings, Verdict
from waver.policies.retrieve.gates.draft import Draft
from waver.policies.retrieve.gates.sampled import sample_answers
from waver.policies.retrieve.gates.targ import of_samples

RIDGE = 1e-3
"""SeaKR's α: keeps the determinant of few or equal samples away from zero."""


def spread(states: torch.Tensor) -> float:
    """Compute SeaKR's U of samples: log det(Z J Zᵀ + α I) / K for their hidden states Z `[K, d]`, with J = I - 11ᵀ/d,
    which centres over the features."""
    z = states.double()
    centred = z - z.mean(dim=1, keepdim=True)
    gram = centred @ centred.T + RIDGE * torch.eye(len(z), dtype=torch.float64)
    return float(torch.logdet(gram)) / len(z)


class SeakrGate(Gate):
    """The spread of the hidden states of `samples` drawn answers, in the middle layer."""

    name: ClassVar[str] = "seakr"
    paper: ClassVar[str | None] = "arXiv 2406.19215"
    threshold: ClassVar[float | None] = -6.0
    draft_tokens: ClassVar[int] = 100
    needs: ClassVar[Inside | None] = "hidden_states"

    def __init__(self, settings: GateSettings) -> None:
        super().__init__(settings)
        self._score: float | None = None

    @property
    def longest(self) -> int:
        return 1  # once the score is known, all that is left to ask is whether the answer is empty

    @property
    def extra_sequences(self) -> int:
        return self.settings.samples

    async def decide(self, draft: Draft) -> Verdict | None:
        if self._score is None:
            self._score = await self._spread(draft.job)
        return of_samples(self._score, draft, self.settings.threshold)

    async def _spread(self, job: Job) -> float:
        settings = self.settings
        drawn = await sample_answers(job, settings.samples, settings.draft_tokens, top_k=50, top_p=0.9)
        samples = [sample for sample in drawn if sample]
        if not samples:
            return math.inf
        engine = job.writer
        states = await asyncio.gather(*(engine.hidden_state([*job.prompt_ids, *s], depth=0.5) for s in samples))
        return spread(torch.stack(states))
