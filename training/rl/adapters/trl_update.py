"""Hold what an update needs of all its rows, while TRL's trainer goes through the micro-batches of its process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from waver.training.rl.batch import Batch


@dataclass
class Update:
    """The rows of an optimizer batch, of all processes, and the metrics of those that this process has done.

    Args:
        metrics: sums so far, by name.
        window: `[n]` places of the rows in the step, in order. batch: those rows; None where there are none.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    window: torch.Tensor | None = None
    batch: Batch | None = None

    def __post_init__(self) -> None:
        self.totals: Mapping[str, float] = {}
        if self.batch is not None:
            self.totals = self.batch.totals or self.batch.counted().totals

    def at(self, places: torch.Tensor) -> Batch:
        """Return the rows at some places of the step, all of which are in the update."""
        assert self.window is not None
        assert self.batch is not None
        return self.batch.select(torch.searchsorted(self.window, places))

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a micro-batch."""
        self.metrics = {name: self.metrics[name] + metrics.get(name, 0.0) for name in self.metrics}
