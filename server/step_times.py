"""Estimate how long an engine alone would take: the seconds of a step, over the last requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from waver.engines.metering import Meter

MEMORY = 0.9
"""Share of what was counted before that a request leaves."""


@dataclass
class StepTimes:
    """Seconds that answers waited for a decoded token, by engine; what was read before it is in them. A request counts
    by its tokens, so that a hand-over of one token, which mostly reads, weighs little beside a whole answer."""

    _counted: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Seconds and tokens, older ones discounted."""

    @property
    def step(self) -> dict[str, float]:
        """Return the seconds of a step, by engine."""
        return {engine: seconds / tokens for engine, (seconds, tokens) in self._counted.items()}

    def observe(self, meter: Meter) -> None:
        """Take in what an answer took."""
        for engine, usage in meter.usage.items():
            if usage.decoded:
                seconds, tokens = (MEMORY * each for each in self._counted.get(engine, (0.0, 0.0)))
                self._counted[engine] = (seconds + usage.seconds, tokens + usage.decoded)
