"""Declare how a guard's projector is fitted. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option


@dataclass(frozen=True)
class GuardFit:
    """Options of fitting a projector."""

    width: Annotated[int, Option("Hidden units.", least=1)] = 64
    projected: Annotated[int, Option("Dimension of the projection.", least=1)] = 16
    margin_weight: Annotated[float, Option("Weight of the margin term (lambda).", least=0.0)] = 0.5
    margin: Annotated[float, Option("Margin between the prototypes' distances (Delta).", least=0.0)] = 1.0
    learning_rate: Annotated[float, Option("Learning rate of Adam.", least=0.0)] = 1e-2
    steps: Annotated[int, Option("Steps over all examples.", least=1)] = 200
    seed: Annotated[int, Option("Seed of the weights.")] = 1
