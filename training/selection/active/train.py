"""Train a querying policy against an adversary, so that in every class of difficulty its worst loss is close to that of
the best policy for that class alone (arXiv 2010.15382).

The objective is min over policies of max over instances of loss - b_k, where b_k is the class risk of the best policy
known for the instance's class k. Without b the adversary would live in the hardest class, and easy instances get worse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from waver.training.selection.active.adversary import class_risks, gap, probabilities, weight_gradient
from waver.training.selection.active.policies import Learnt, Policy
from waver.training.selection.active.tasks import Task


@dataclass(frozen=True)
class Settings:
    """The course of one training.

    Args:
        steps: updates. rollouts: in each. weight_step: of the adversary's weights, times the number of instances.
            entropy: coefficient of the actions' entropy (nats). decay: of the running losses. every: updates between
            measurements, of which the best is kept. measured: rollouts of an instance in each.
    """

    steps: int = 350
    rollouts: int = 1024
    rate: float = 3e-3
    weight_step: float = 0.3
    entropy: float = 0.003
    decay: float = 0.9
    every: int = 50
    measured: int = 200


@torch.no_grad()
def play(
    task: Task, policy: Policy, instances: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what was seen before each query `[T, rollouts, actions, 2]`, the queries `[T, rollouts]`, and the loss of
    each rollout."""
    seen = torch.zeros(len(instances), task.actions, 2)
    before, made = [], []
    rows = torch.arange(len(instances))
    for step in range(task.budget):
        chances = policy(seen, step, generator).softmax(-1)
        actions = torch.multinomial(chances, 1, generator=generator)[:, 0]
        before.append(seen.clone())
        made.append(actions)
        seen[rows, actions, 0] += 1
        seen[rows, actions, 1] += task.observe(instances, actions, generator)
    return torch.stack(before), torch.stack(made), task.loss(seen, instances)


def expected_losses(task: Task, policy: Policy, rollouts: int, generator: torch.Generator) -> torch.Tensor:
    """Return each instance's mean loss over so many rollouts."""
    instances = torch.arange(len(task.classes)).repeat_interleave(rollouts)
    return play(task, policy, instances, generator)[2].reshape(-1, rollouts).mean(1)


def train(
    task: Task,
    policy: Learnt,
    members: torch.Tensor,
    best: torch.Tensor,
    settings: Settings,
    generator: torch.Generator,
    advance: Callable[[], None] = lambda: None,
) -> Learnt:
    """Return the policy of the lowest measured gap.

    Args:
        policy: where it starts; it is not changed. members: instances that the adversary may choose. best: b_k of each
            class; zeros train for the worst case.
    """
    policy = policy.copy()
    network = policy.network
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.rate)
    offsets = best[task.classes[members]]
    weights = torch.zeros(len(members))
    running = expected_losses(task, policy, max(1, settings.measured // 10), generator)[members]
    kept, lowest = policy.copy(), float("inf")
    for step in range(settings.steps):
        drawn = torch.multinomial(probabilities(weights), settings.rollouts, True, generator=generator)
        before, made, losses = play(task, policy, members[drawn], generator)
        _descend(policy, optimizer, before, made, losses - running[drawn], settings)
        running = _remember(running, drawn, losses, settings.decay)
        weights = weights + settings.weight_step * len(members) * weight_gradient(weights, running - offsets)
        if (step + 1) % settings.every == 0 or step + 1 == settings.steps:
            worst = float((expected_losses(task, policy, settings.measured, generator)[members] - offsets).max())
            if worst < lowest:
                kept, lowest = policy.copy(), worst
        advance()
    return kept


def _descend(
    policy: Learnt,
    optimizer: torch.optim.Optimizer,
    before: torch.Tensor,
    made: torch.Tensor,
    advantage: torch.Tensor,
    settings: Settings,
) -> None:
    """Take one step down the score-function gradient of the loss, and up the entropy of the actions."""
    features = torch.stack([policy.task.features(seen, step) for step, seen in enumerate(before)])
    log_p = policy.network(features).log_softmax(-1)
    taken = log_p.gather(-1, made[..., None])[..., 0].sum(0)
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    objective = (advantage * taken).mean() - settings.entropy * entropy
    optimizer.zero_grad()
    objective.backward()
    optimizer.step()


def _remember(running: torch.Tensor, drawn: torch.Tensor, losses: torch.Tensor, decay: float) -> torch.Tensor:
    """Move the running loss of each instance that was drawn towards its mean loss."""
    count = torch.bincount(drawn, minlength=len(running))
    total = torch.bincount(drawn, losses, minlength=len(running))
    new = decay * running + (1 - decay) * total / count.clamp_min(1)
    return torch.where(count > 0, new, running)


@dataclass(frozen=True)
class Robust:
    """A trained policy, the class risks of all that were trained (`class 0`, …, `gap`), and the best in each class."""

    policy: Learnt
    risks: dict[str, list[float]]
    best: list[float]

    @property
    def gap(self) -> float:
        return gap(torch.tensor(self.risks["gap"]), torch.tensor(self.best))


def train_robust(
    task: Task,
    start: Learnt,
    settings: Settings,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Robust:
    """Train a policy for each class, then one for all from the class policy of the lowest gap, with the gap objective.

    b_k is the lowest class risk of any policy seen, as an adversary that cycles may spoil the one of its own class.
    """
    generator = torch.Generator().manual_seed(seed)
    count = int(task.classes.max()) + 1
    own: dict[str, Learnt] = {}
    for k in range(count):
        members = torch.nonzero(task.classes <= k)[:, 0]
        own[f"class {k}"] = train(task, start, members, torch.zeros(count), settings, generator, advance)
    risks = {name: _risks(task, policy, settings, generator) for name, policy in own.items()}
    best = torch.stack(list(risks.values())).min(0).values
    first = min(own, key=lambda name: gap(risks[name], best))
    every = torch.arange(len(task.classes))
    own["gap"] = train(task, own[first], every, best, settings, generator, advance)
    risks["gap"] = _risks(task, own["gap"], settings, generator)
    if gap(risks[first], best) < gap(risks["gap"], best):  # where training on made it worse, the start is returned
        own["gap"], risks["gap"] = own[first], risks[first]
    best = torch.minimum(best, risks["gap"])
    told = {name: cast(list[float], each.tolist()) for name, each in risks.items()}
    return Robust(own["gap"], told, best.tolist())


def _risks(task: Task, policy: Policy, settings: Settings, generator: torch.Generator) -> torch.Tensor:
    return class_risks(expected_losses(task, policy, 5 * settings.measured, generator), task.classes)
