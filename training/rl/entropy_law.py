"""Fit the price of entropy (arXiv 2505.22617): accuracy R = -a exp(H) + b along a run without entropy control.

Linear in a and b given exp(H), so ordinary least squares fits it (the paper does not name its fit). The ceiling, at
H = 0, is b - a: a forecast from the first 15 % of a run. Not for runs with an entropy or KL term, nor across prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EntropyLaw:
    """R = -a exp(H) + b, H in nats."""

    a: float
    b: float

    def accuracy(self, entropy: float) -> float:
        """Return the accuracy that the law expects at this entropy (nats)."""
        return self.b - self.a * math.exp(entropy)

    @property
    def ceiling(self) -> float:
        """The accuracy when all entropy is spent."""
        return self.b - self.a

    def error(self, entropy: Sequence[float], accuracy: Sequence[float]) -> float:
        """Return root mean square of what the law is off by."""
        squares = [(self.accuracy(h) - r) ** 2 for h, r in zip(entropy, accuracy, strict=True)]
        return math.sqrt(sum(squares) / len(squares))


def fit_entropy_law(entropy: Sequence[float], accuracy: Sequence[float]) -> EntropyLaw:
    """Return the law through validations: mean token entropy of the rollouts (nats) and accuracy (0 to 1), one pair
    each.

    Raises:
        ValueError: fewer than two different entropies.
    """
    if len(set(entropy)) < 2:
        raise ValueError("a line needs two different entropies")
    x = torch.tensor(entropy, dtype=torch.float64).exp()
    y = torch.tensor(accuracy, dtype=torch.float64)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return EntropyLaw(a=-slope, b=float(y.mean()) - slope * float(x.mean()))
