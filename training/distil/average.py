"""Keep a slow copy of a model's trained weights, to be its own teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Averaged:
    """An exponential moving average of the weights that are trained.

    Args:
        pace: towards the model at each step; at 1 it is the model itself, and no copy is kept.
    """

    def __init__(self, model: torch.nn.Module, pace: float) -> None:
        self.model, self.pace = model, pace
        self.weights = {} if pace == 1 else {name: x.detach().clone() for name, x in self._trained()}

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, x) for name, x in self.model.named_parameters() if x.requires_grad)

    @torch.no_grad()
    def follow(self) -> None:
        """Move a step towards the model."""
        for name, x in self._trained():
            if name in self.weights:
                self.weights[name].lerp_(x.detach(), self.pace)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have the model compute with the averaged weights in this block, without gradient."""
        own = {name: x.data for name, x in self._trained()}
        try:
            for name, x in self._trained():
                x.data = self.weights.get(name, x.data)
            yield
        finally:
            for name, x in self._trained():
                x.data = own[name]

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take up weights that a checkpoint has kept."""
        for name, x in weights.items():
            self.weights[name].copy_(x)
