"""Choose the next query: networks that are trained, and the rules that they have to beat.

A policy returns logits of actions `[rollouts, actions]` from what was seen, the number of the query, and a generator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from waver.training.selection.active.tasks import Task, Thresholds

SURE = 1e6
"""Logit by which a rule decides."""


class Policy(Protocol):
    def __call__(self, seen: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
        """Return logits of the actions."""


class Flat(nn.Module):
    """A network of one hidden layer, for actions that differ by their places."""

    def __init__(self, inputs: int, actions: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, actions))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(features)
        return found


class Shared(nn.Module):
    """A network that scores each arm by its own features and the mean over all, whatever their order and number."""

    def __init__(self, inputs: int = 6, width: int = 64) -> None:
        super().__init__()
        self.own = nn.Linear(inputs, width)
        self.both = nn.Linear(2 * width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        own = self.own(features).relu()
        both = self.both(torch.cat([own, own.mean(-2, keepdim=True).expand_as(own)], -1)).relu()
        found: torch.Tensor = self.score(both)[..., 0]
        return found


class Learnt:
    """A network on a task's features."""

    def __init__(self, task: Task, network: nn.Module) -> None:
        self.task, self.network = task, network

    def __call__(self, seen: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
        found: torch.Tensor = self.network(self.task.features(seen, step))
        return found

    def copy(self) -> Learnt:
        return Learnt(self.task, copy.deepcopy(self.network))


def uniform(seen: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
    """Query any action."""
    return torch.zeros(seen.shape[:2])


def entropy_greedy(seen: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
    """Query the action whose next observation is the most uncertain: the entropy of (sum + 1) / (count + 2)."""
    p = (seen[..., 1] + 1) / (seen[..., 0] + 2)
    return _decided(-(p * p.log() + (1 - p) * (1 - p).log()))


def thompson(seen: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
    """Query the arm that is best in a draw from the posterior."""
    return _decided(_beliefs(seen, generator))


def top_two(seen: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
    """Query the arm that is best in a draw from the posterior or, every other time, the best of the others in another
    draw."""
    first = _beliefs(seen, generator).argmax(1, keepdim=True)
    second = _beliefs(seen, generator).scatter(1, first, float("-inf")).argmax(1, keepdim=True)
    chosen = torch.where(torch.rand(first.shape, generator=generator) < 0.5, second, first)[:, 0]
    return nn.functional.one_hot(chosen, seen.shape[1]).float() * SURE


def halving(task: Thresholds) -> Policy:
    """Return the policy that queries the point next to the middle of the thresholds with the fewest errors."""

    def query(seen: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
        errors = task.errors(seen)
        best = (errors == errors.min(1, keepdim=True).values).float()
        above = best.flip(1).cumsum(1).flip(1)[:, 1:]  # thresholds that would label a point 0
        return _decided(-(above - best.sum(1, keepdim=True) / 2).abs())

    return query


def _beliefs(seen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw means from Beta posteriors, by the normal that has their mean and variance."""
    a, b = seen[..., 1] + 1, seen[..., 0] - seen[..., 1] + 1
    mean, total = a / (a + b), a + b
    spread = (mean * (1 - mean) / (total + 1)).sqrt()
    return mean + spread * torch.randn(mean.shape, generator=generator)


def _decided(scores: torch.Tensor) -> torch.Tensor:
    """Return logits that choose a largest score, ties by chance."""
    best = scores >= scores.max(1, keepdim=True).values - 1e-9
    return best.float() * SURE


RULES: dict[str, Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]] = {
    "uniform": uniform,
    "entropy": entropy_greedy,
    "thompson": thompson,
    "top_two": top_two,
}
"""Rules for arms, by name."""
