"""Simulate what is queried: thresholds on a line, and arms with unknown mean rewards.

A task has a finite set of instances, each with its class of difficulty. What was seen of a query is kept as two
numbers, how often it was made and the sum of its observations: `[rollouts, actions, 2]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from waver.training.selection.active.complexity import best_arm


class Task(Protocol):
    """Answers queries, and judges what was recommended after them."""

    actions: int
    budget: int
    classes: torch.Tensor
    """The smallest class of difficulty of each instance, from 0 on."""

    def observe(self, instances: torch.Tensor, actions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one observation in [0, 1] for each rollout."""

    def loss(self, seen: torch.Tensor, instances: torch.Tensor) -> torch.Tensor:
        """Return the expected loss in [0, 1] of what is recommended."""

    def features(self, seen: torch.Tensor, step: int) -> torch.Tensor:
        """Return what a network reads before query number `step`, from 0 on."""


class Thresholds:
    """Points 0..n-1 with labels 1 from a threshold on, flipped with a probability; the threshold is wanted.

    Recommended is the threshold with the fewest errors, any of those that are level; the loss is its distance over n.

    Args:
        noises: a class of difficulty for each, rising; every threshold 0..n is an instance under each.
    """

    def __init__(self, points: int = 8, budget: int = 6, noises: Sequence[float] = (0.02, 0.25)) -> None:
        self.actions, self.budget = points, budget
        grid = [(t, noise, k) for k, noise in enumerate(noises) for t in range(points + 1)]
        self.truth = torch.tensor([t for t, _, _ in grid])
        self.noise = torch.tensor([noise for _, noise, _ in grid])
        self.classes = torch.tensor([k for _, _, k in grid])
        self._labels = (torch.arange(points) >= torch.arange(points + 1)[:, None]).float()

    def observe(self, instances: torch.Tensor, actions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        clean = actions >= self.truth[instances]
        return (clean ^ (torch.rand(len(actions), generator=generator) < self.noise[instances])).float()

    def loss(self, seen: torch.Tensor, instances: torch.Tensor) -> torch.Tensor:
        likely = self.errors(seen)
        best = (likely == likely.min(1, keepdim=True).values).float()
        distance = (torch.arange(self.actions + 1) - self.truth[instances][:, None]).abs() / self.actions
        return (best * distance).sum(1) / best.sum(1)

    def errors(self, seen: torch.Tensor) -> torch.Tensor:
        """Count the labels against each threshold, `[rollouts, thresholds]`."""
        ones, zeros = seen[..., 1], seen[..., 0] - seen[..., 1]
        return zeros @ self._labels.T + ones @ (1 - self._labels).T

    def features(self, seen: torch.Tensor, step: int) -> torch.Tensor:
        ones, zeros = seen[..., 1], seen[..., 0] - seen[..., 1]
        time = torch.full((len(seen), 1), step / self.budget)
        return torch.cat([zeros, ones, time], 1)


class Arms:
    """Arms whose rewards are 1 with an unknown probability; the best is wanted, and the loss is the regret.

    Recommended is an arm of the highest mean so far, any of those that are level.

    Args:
        means: of the instances, `[instances, arms]`. classes: of each.
    """

    def __init__(self, means: torch.Tensor, classes: torch.Tensor, budget: int) -> None:
        self.means, self.classes, self.budget = means, classes, budget
        self.actions = int(means.shape[1])

    def observe(self, instances: torch.Tensor, actions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (torch.rand(len(actions), generator=generator) < self.means[instances, actions]).float()

    def loss(self, seen: torch.Tensor, instances: torch.Tensor) -> torch.Tensor:
        found = averages(seen, -1.0)
        best = (found == found.max(1, keepdim=True).values).float()
        own = self.means[instances]
        return own.max(1).values - (best * own).sum(1) / best.sum(1)

    def features(self, seen: torch.Tensor, step: int) -> torch.Tensor:
        """Return for each arm its share of the queries, its mean and its distance to the best mean, in units of its own
        uncertainty too, and the time: `[rollouts, arms, 6]`."""
        count, mean = seen[..., 0], averages(seen, 0.5)
        spread = 0.5 / (count + 1).sqrt()
        behind = mean.max(1, keepdim=True).values - mean
        time = torch.full_like(mean, step / self.budget)
        return torch.stack([count / self.budget, mean, spread, behind, behind / spread / 4, time], -1)


def averages(seen: torch.Tensor, unseen: float) -> torch.Tensor:
    """Return the mean observation of each action; `unseen` where there is none."""
    count = seen[..., 0]
    return torch.where(count > 0, seen[..., 1] / count.clamp_min(1), torch.tensor(unseen))


def draw_arms(arms: int, budget: int, classes: int, instances: int, seed: int, widest: float | None = None) -> Arms:
    """Draw instances of arms in classes of rising difficulty, as many in each.

    Class k holds complexities up to r_k = r_0 4^k, where r_0 is that of gaps of one half; means lie in [0, 1]. With a
    budget of T a class whose complexity is far above T cannot be solved, so that the last one is at most some 4 T.

    Args:
        widest: the largest complexity, in place of r_0 4^(classes - 1).
    """
    generator = torch.Generator().manual_seed(seed)
    first = 4.0 * (arms - 1)
    limits = [first * 4**k for k in range(classes)]
    if widest is not None:
        limits = [first * (widest / first) ** (k / max(1, classes - 1)) for k in range(classes)]
    found: list[torch.Tensor] = []
    own: list[int] = []
    for k, limit in enumerate(limits):
        lower, wanted = (0.0 if k == 0 else limits[k - 1]), -(-instances // classes)
        while wanted:
            means = torch.rand(4096, arms, generator=generator)
            scale = 0.2 + 0.8 * torch.rand(4096, 1, generator=generator)
            means = 0.5 + (means - 0.5) * scale + (1 - scale) * (torch.rand(4096, 1, generator=generator) - 0.5)
            hard = best_arm(means)
            kept = means[(hard <= limit) & (hard > lower)][:wanted]
            found.append(kept)
            own += [k] * len(kept)
            wanted -= len(kept)
    return Arms(torch.cat(found), torch.tensor(own), budget)
