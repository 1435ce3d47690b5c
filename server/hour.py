"""Keep the readings of all counters of the last hour, some seconds apart."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prometheus_client import CollectorRegistry

EVERY = 30.0
"""Seconds between two readings of the counters."""
KEPT = 121
"""Readings that are kept: an hour's, and the one before."""
MOST_SERIES = 2000
"""Series of one answer."""
Series = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""


@dataclass(frozen=True)
class Reading:
    """The values of all counters at one moment, in seconds of the event loop's clock."""

    moment: float
    values: dict[Series, float]


class Hour:
    """The readings of the last hour."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._readings: deque[Reading] = deque(maxlen=KEPT)

    async def watch(self) -> None:
        """Read the counters until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            self.read(clock())
            await asyncio.sleep(EVERY)

    def read(self, moment: float) -> None:
        """Keep what the counters say now."""
        self._readings.append(self._now(moment))

    def _now(self, moment: float) -> Reading:
        values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self._registry.collect()
            if family.name.startswith("waver_") and family.type in ("counter", "histogram")
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        return Reading(moment, values)

    def as_dict(self, now: float) -> dict[str, Any]:
        """Return by how much each series grew between readings, the last of which is now; those that stood still are
        left out."""
        readings = [*self._readings, self._now(now)]
        if len(readings) == 1:
            readings.insert(0, Reading(now, {}))
        series = []
        for name, labels in readings[-1].values:
            values = [each.values.get((name, labels), 0.0) for each in readings]
            grown = [round(after - before, 6) for before, after in pairwise(values)]
            if any(grown):
                series.append({"name": name, "labels": dict(labels), "grown": grown})
        return {
            "object": "dashboard",
            "ago": [round(now - each.moment, 1) for each in readings],
            "series": series[:MOST_SERIES],
            "truncated": len(series) > MOST_SERIES,
        }
