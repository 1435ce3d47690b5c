"""Decisions of policies about a token of the answer, which a step carries to the trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision of a policy about a token of the answer.

    `value` was compared with `threshold`, both in nats unless the policy says otherwise; `entropy` (nats) is that of
    this position alone where `value` is a mean. They are of the distribution of the engine `of`. `then` names what
    followed: `stay`, `switch`, `hold` (the value asked for a switch, which the policy did not allow yet), `repetition`
    (the engine went round in circles, and another took over), `look_up`, `keep`, `force`, or a strategy.
    """

    policy: str
    then: str
    value: float | None = None
    threshold: float | None = None
    of: str | None = None
    entropy: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return its entry of `waver.trace[].decision`, without what is not known."""
        known = {"value": self.value, "threshold": self.threshold, "of": self.of, "entropy": self.entropy}
        return {"then": self.then} | {name: each for name, each in known.items() if each is not None}
