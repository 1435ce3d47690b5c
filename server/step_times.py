"""Estimate how long an engine alone would take: running means of the seconds of a step, over the last requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from waver.engines.metering import Meter

MEMORY = 0.9
"""Share of an older mean that a request leaves."""


@dataclass
class StepTimes:
    """Seconds that answers waited for a decoded token, by engine; what was read before it is in them."""

    step: dict[str, float] = field(default_factory=dict)

    def observe(self, meter: Meter) -> None:
        """Take in what an answer took."""
        for engine, usage in meter.usage.items():
            if usage.decoded:
                now = usage.seconds / usage.decoded
                self.step[engine] = MEMORY * self.step.get(engine, now) + (1 - MEMORY) * now
