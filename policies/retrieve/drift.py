"""Watch whether gates still fire as often as they did in calibration."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger("waver")

WINDOW, ENOUGH = 200, 50
"""Decisions that a rate is taken over, and how few are too few to speak of one."""
DRIFT = 0.1
"""Largest difference between a rate and its expectation: 10 points (L-RAG, arXiv 2601.06551)."""
MOST = 64
"""Gates that are watched; a client chooses their parameters, so there must be a bound."""


@dataclass
class Watched:
    """The last decisions of one gate, and the rate that calibration expects of it, if it was given."""

    expected: float | None
    decisions: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    alarm: bool = False

    @property
    def rate(self) -> float:
        return sum(self.decisions) / len(self.decisions)


class Drift:
    """The realised rate of every gate that requests use, by collection, gate and threshold."""

    def __init__(self) -> None:
        self.gates: dict[tuple[str, str, str], Watched] = {}

    def decided(self, collection: str, gate: str, threshold: float, expected: float | None, fired: bool) -> None:
        key = (collection, gate, f"{threshold:g}")
        if key not in self.gates and len(self.gates) >= MOST:
            self.gates.pop(next(iter(self.gates)))
        watched = self.gates.setdefault(key, Watched(expected))
        watched.expected = expected
        watched.decisions.append(fired)
        off = expected is not None and len(watched.decisions) >= ENOUGH and abs(watched.rate - expected) > DRIFT
        if off and not watched.alarm:
            log.warning(
                "a gate fires at another rate than in calibration: calibrate it again",
                collection=collection,
                gate=gate,
                threshold=threshold,
                expected=expected,
                rate=round(watched.rate, 3),
            )
        watched.alarm = off
