"""Train a probe: a classifier of hidden states (DiffAdapt, arXiv 2510.19669)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from waver.training.probe.labels import CLASSES

SPLIT_SEED = 42


@dataclass(frozen=True)
class Recipe:
    """AdamW on the cross-entropy; the learning rate falls along a cosine to one per cent of itself, epoch by epoch."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 100
    batch: int = 32
    width: int = 512
    held_out: float = 0.2
    """The share of the questions that decide which epoch's weights are kept."""


PAPER = Recipe()


@dataclass(frozen=True)
class Fitted:
    """The best epoch's network, and the held-out classes beside what it takes them for, `[questions]` each."""

    network: nn.Module
    epoch: int
    truth: torch.Tensor
    told: torch.Tensor

    @property
    def macro_f1(self) -> float:
        return macro_f1(self.truth, self.told)

    @property
    def accuracy(self) -> float:
        return float((self.truth == self.told).float().mean())


def mlp(hidden: int, width: int = Recipe.width) -> nn.Sequential:
    """Return w2 relu(W1 h + b1) + b2: the network that `waver.engines.probe` runs."""
    return nn.Sequential(nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, len(CLASSES)))


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return an `mlp`'s tensors under the names of a probe's."""
    names = {"0.weight": "W1", "0.bias": "b1", "2.weight": "W2", "2.bias": "b2"}
    return {names[name]: tensor.detach() for name, tensor in network.state_dict().items()}


def split(count: int, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Return places of the questions to train on and of those held out, always the same for as many questions."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    kept = count - max(1, round(recipe.held_out * count))
    return order[:kept], order[kept:]


def confusion(truth: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Count how often a class (row) was taken for another (column): `[3, 3]` counts."""
    size = len(CLASSES)
    return torch.bincount(truth * size + told, minlength=size * size).view(size, size)


def macro_f1(truth: torch.Tensor, told: torch.Tensor) -> float:
    """Return the mean F1 score of the classes that occur, in truth or in what was told."""
    table = confusion(truth, told)
    size = table.sum(0) + table.sum(1)
    return float((2 * table.diagonal() / size.clamp(min=1))[size > 0].mean())


def schedule(optimiser: torch.optim.Optimizer, recipe: Recipe) -> torch.optim.lr_scheduler.LRScheduler:
    least = 0.01 * recipe.learning_rate
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs, eta_min=least)


def fit(
    states: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe = PAPER,
    seed: int = 0,
    make: Callable[[int, int], nn.Module] = mlp,
) -> Fitted:
    """Train a network on `[questions, hidden]` states and `[questions]` classes, and keep the epoch with the best
    held-out macro-F1. `make(hidden, width)` is the network to train.

    Raises:
        ValueError: too few questions to hold any out.
    """
    if len(states) < 2:
        raise ValueError(f"{len(states)} questions are too few to train a probe on")
    taught, held = split(len(states), recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make(states.shape[1], recipe.width)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        rates = schedule(optimiser, recipe)
        best: Fitted | None = None
        for epoch in range(1, recipe.epochs + 1):
            for batch in taught[torch.randperm(len(taught))].split(recipe.batch):
                optimiser.zero_grad()
                cross_entropy(network(states[batch]), labels[batch]).backward()
                optimiser.step()
            rates.step()
            with torch.no_grad():
                now = Fitted(network, epoch, labels[held], network(states[held]).argmax(-1))
            if best is None or now.macro_f1 > best.macro_f1:
                best = Fitted(deepcopy(network), epoch, now.truth, now.told)
    assert best is not None
    return best


@dataclass(frozen=True)
class BestFit:
    """The best probe for a rule, and the held-out macro-F1 of all that were tried, by words."""

    words: str
    seed: int
    fitted: Fitted
    scores: dict[str, list[float]]


def best_fit(seen: Mapping[str, torch.Tensor], classes: torch.Tensor, seeds: int) -> BestFit:
    """Return the words whose probes score best on average, and of these probes the best."""
    fits = {words: [fit(h, classes, seed=seed) for seed in range(seeds)] for words, h in seen.items()}
    scores = {words: [each.macro_f1 for each in made] for words, made in fits.items()}
    words = max(scores, key=lambda each: sum(scores[each]))
    seed = max(range(seeds), key=lambda each: scores[words][each])
    return BestFit(words, seed, fits[words][seed], scores)
