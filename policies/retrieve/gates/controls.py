"""Controls, which look passages up for every request, for none, or for a share of them."""

from __future__ import annotations

import random
from typing import ClassVar

from waver.policies.retrieve.gates.base import Gate, Verdict
from waver.policies.retrieve.gates.draft import Draft


class AlwaysGate(Gate):
    """Look passages up for every request."""

    name: ClassVar[str] = "always"

    async def decide(self, draft: Draft) -> Verdict | None:
        return Verdict(True)


class NeverGate(Gate):
    """Look nothing up."""

    name: ClassVar[str] = "never"

    async def decide(self, draft: Draft) -> Verdict | None:
        return Verdict(False)


class RandomGate(Gate):
    """Look passages up for a share `rate` of the requests, by the request's seed."""

    name: ClassVar[str] = "random"

    async def decide(self, draft: Draft) -> Verdict | None:
        return Verdict(random.Random(f"l_rag:{draft.job.sampling.seed}").random() < self.settings.rate)
