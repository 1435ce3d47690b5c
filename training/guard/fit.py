"""Fit the projector of `safeharbor`: SafeHarbor, arXiv 2605.05704, section II-b.

    L = BCE(S_harm, y) + lambda * mean max(0, Delta + ||z - w_y|| - ||z - w_not_y||)

The paper's lambda and Delta are not known; those here are ours.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from waver.engines.projector import Projector, distances, harm
from waver.training.guard.options import GuardFit


def margins(to_benign: torch.Tensor, to_harmful: torch.Tensor, harmful: torch.Tensor, delta: float) -> torch.Tensor:
    """Return max(0, Delta + distance to the own prototype - distance to the other), `[n]`; `harmful` are the labels."""
    own = torch.where(harmful > 0.5, to_harmful, to_benign)
    other = torch.where(harmful > 0.5, to_benign, to_harmful)
    return torch.clamp(delta + own - other, min=0.0)


def loss(
    to_benign: torch.Tensor, to_harmful: torch.Tensor, harmful: torch.Tensor, margin_weight: float, delta: float
) -> torch.Tensor:
    """Return L of the distances from both prototypes `[n]` and labels `[n]`, 1 for harmful."""
    cross = functional.binary_cross_entropy(harm(to_benign, to_harmful), harmful)
    return cross + margin_weight * margins(to_benign, to_harmful, harmful, delta).mean()


def fit(vectors: torch.Tensor, harmful: torch.Tensor, how: GuardFit) -> Projector:
    """Fit a projector to vectors `[n, dimension]` and labels `[n]`, 1 for harmful.

    Raises:
        ValueError: there is no example of one of the labels.
    """
    labels = harmful.float()
    if not 0 < labels.sum() < len(labels):
        raise ValueError("examples of both labels are needed, benign and harmful")
    generator = torch.Generator().manual_seed(how.seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    weights = {
        "W1": drawn(how.width, vectors.shape[1]),
        "b1": torch.zeros(how.width),
        "W2": drawn(how.projected, how.width),
        "b2": torch.zeros(how.projected),
        "benign": drawn(how.projected),
        "harmful": drawn(how.projected),
    }
    for tensor in weights.values():
        tensor.requires_grad_(True)
    projector = Projector(weights)
    optimizer = torch.optim.Adam(list(weights.values()), how.learning_rate)
    for _ in range(how.steps):
        near = distances(projector.project(vectors), weights["benign"], weights["harmful"])
        value = loss(*near, labels, how.margin_weight, how.margin)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return Projector({name: tensor.detach() for name, tensor in weights.items()})
