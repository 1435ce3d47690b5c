"""Weigh instances against a policy, and measure how far it is from the best one of each class of difficulty (arXiv
2010.15382). Classes are nested: an instance of class k belongs to all that follow."""

from __future__ import annotations

import torch

MIXED = 0.1
"""Share of draws that are uniform, so that no instance is left out."""


def probabilities(weights: torch.Tensor) -> torch.Tensor:
    """Return softmax(weights), with a tenth of it uniform."""
    return (1 - MIXED) * weights.softmax(0) + MIXED / len(weights)


def weight_gradient(weights: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the expected excess over softmax(weights): q (J - q . J)."""
    q = weights.softmax(0)
    return q * (excess - q @ excess)


def sampled_gradient(weights: torch.Tensor, drawn: int, excess: float) -> torch.Tensor:
    """Return the same from one draw of an instance: its excess times (its indicator - q)."""
    indicator = torch.zeros_like(weights)
    indicator[drawn] = 1.0
    return excess * (indicator - weights.softmax(0))


def class_risks(losses: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the largest expected loss in each nested class.

    Args:
        losses: of each instance. classes: the smallest class of each, from 0 on.
    """
    return torch.stack([losses[classes <= k].max() for k in range(int(classes.max()) + 1)])


def gap(risks: torch.Tensor, best: torch.Tensor) -> float:
    """Return the largest excess over the best risk in any class."""
    return float((risks - best).max())
