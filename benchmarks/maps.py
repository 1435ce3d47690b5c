"""Feature maps with classes for tests and the benchmark of few-shot increments.

A class has a map of its own, samples are mixed with six maps that all classes share, and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from waver.training.adaptation.fscil import Examples


@dataclass
class World:
    """Classes with maps `[tokens, channels]` that depend on the seed."""

    seed: int
    classes: int = 19
    tokens: int = 4
    channels: int = 24

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.own = 0.55 * self._normal(self.classes, self.tokens, self.channels)
        self.shared = self._normal(6, self.tokens, self.channels)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def draw(self, labels: range, each: int) -> Examples:
        found = torch.tensor(list(labels)).repeat_interleave(each)
        mixed = torch.einsum("nk,ktc->ntc", self._normal(len(found), 6), self.shared)
        noise = self._normal(len(found), self.tokens, self.channels)
        return Examples(self.own[found] + 0.2 * mixed + 0.4 * noise, found)
