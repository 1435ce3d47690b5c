"""Name the differences that `waver bench replay` finds and that are wanted, each with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from waver.benchmarks.replay_answers import Difference
from waver.benchmarks.replay_requests import Request


@dataclass(frozen=True)
class Intended:
    """Differences at places that match `where`, in answers to requests whose name matches `name`."""

    name: str
    where: str
    reason: str

    def fits(self, request: Request, found: Difference) -> bool:
        return bool(re.search(self.name, request.name) and re.fullmatch(self.where, found.where))


BY_MODULE = "policies are found by their modules, so those of one stage are listed by name"
INTENDED: tuple[Intended, ...] = (
    Intended(r" models$", r"body\.data \(order\)", BY_MODULE),
    Intended(r"^334 refused$", r"body\.error\.message", BY_MODULE),  # an unknown policy, with the names of all
)


def reason(request: Request, found: Difference) -> str | None:
    """Return why a difference is wanted; None where it is not known to be."""
    return next((each.reason for each in INTENDED if each.fits(request, found)), None)
