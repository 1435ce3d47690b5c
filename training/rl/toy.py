"""Train one recipe on the toy task: the shortest complete trainer, to compare methods in seconds.

histories = [train(make_recipe("grpo", ["steer"]), seed) for seed in range(5)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import nn

from waver.entropy import shannon_entropy
from waver.training.rl.batch import Batch, Rollouts
from waver.training.rl.method import Draw
from waver.training.rl.recipe import Recipe
from waver.training.rl.toy_task import PROMPTS, Evaluation, Policy, Task, evaluate, pretrained

__all__ = ["Evaluation", "History", "Policy", "Task", "evaluate", "pretrained", "train"]

Reward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PLAIN = Task()


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the toy's optimizer."""
    return torch.optim.Adam(parameters, lr=2e-3)


@dataclass(frozen=True)
class History:
    """The course of a run: evaluations before and after, and the metrics of every step."""

    start: Evaluation
    end: Evaluation
    steps: list[dict[str, float]]

    @property
    def tokens_updated(self) -> float:
        """Tokens that had a weight and an advantage, over the whole run."""
        return sum(step["tokens_updated"] for step in self.steps)


def train(
    recipe: Recipe,
    seed: int = 0,
    *,
    task: Task = PLAIN,
    steps: int = 100,
    group_size: int = 8,
    minibatches: int = 2,
    microbatches: int = 1,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam,
    reward: Reward | None = None,
) -> History:
    """Train the pretrained policy of that seed with a recipe. Methods remember: make a new recipe for each run.

    Args:
        minibatches: updates per step. microbatches: forward passes per update; they change nothing but rounding.
        reward: `[B, 8]` tokens and `[B]` prompts (those of a prompt side by side) -> `[B]`; if left out, 1 for a right
            answer and 0 for a wrong one.

    Raises:
        ValueError: the recipe measures attention, which this policy does not have.
    """
    if any(m.source == "attention" for m in recipe.measures):
        raise ValueError("this recipe measures attention, and the toy's policy has none")
    policy, generator = pretrained(task, seed), torch.Generator().manual_seed(seed)
    reference = deepcopy(policy) if recipe.needs_reference else None
    optimize = optimizer(policy.parameters())
    start, log = evaluate(policy, task, seed), []
    for step in range(1, steps + 1):
        rollouts = roll_out(policy, recipe.plan(), task, group_size, generator, reward)
        rollouts = replace(rollouts, step=step, total_steps=steps)
        batch = old_policy_pass(policy, recipe, rollouts, reference)
        metrics: dict[str, float] = {"tokens_updated": 0.0, **recipe.drawn(batch)}
        log.append(metrics)
        batch = batch.select(recipe.keep(batch))
        if not len(batch):
            continue
        batch, of_step = recipe.control(recipe.advantages(batch))
        metrics |= of_step
        for mini in batch.split(minibatches, generator):
            if recipe.looks_ahead:
                with torch.no_grad():
                    mini = forward(policy, recipe, mini)
            mini = recipe.begin_update(mini)
            if not mini.totals["selected"]:
                continue
            optimize.zero_grad()
            of_update: dict[str, float] = {}
            for micro in mini.split(microbatches):
                loss, of_micro = recipe.loss(forward(policy, recipe, micro))
                loss.backward()
                of_update = {name: of_update.get(name, 0.0) + value for name, value in of_micro.items()}
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimize.step()
            metrics |= of_update
            metrics["tokens_updated"] += of_update["updated"] * mini.totals["tokens"]
    return History(start, evaluate(policy, task, seed), log)


def roll_out(
    policy: Policy,
    plan: tuple[Draw, ...],
    task: Task,
    group_size: int,
    generator: torch.Generator,
    reward: Reward | None = None,
) -> Rollouts:
    """Return all prompts, or a draw's share of them, with `group_size` rows each."""
    parts = []
    for i, draw in enumerate(plan):
        chosen = torch.randperm(PROMPTS, generator=generator)[: max(1, round(draw.share * PROMPTS))].sort().values
        prompts = chosen.repeat_interleave(group_size)
        tokens = policy.sample(prompts, generator, draw)
        correct = task.correct(tokens, prompts)
        rewards = correct.float() if reward is None else reward(tokens, prompts)
        parts.append((tokens, correct, rewards, i * PROMPTS + prompts, torch.full_like(prompts, i)))
    tokens, correct, rewards, group, draws = (torch.cat(column) for column in zip(*parts, strict=True))
    return Rollouts(
        mask=torch.ones(tokens.shape),
        reward=rewards,
        group=group,
        correct=correct,
        draw=draws,
        truncated=torch.zeros_like(correct),
        tokens=tokens,
    )


def chosen_logprob(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def old_policy_pass(policy: Policy, recipe: Recipe, rollouts: Rollouts, reference: Policy | None) -> Batch:
    """Run the old policy without gradient."""
    prompts, tokens = rollouts.group % PROMPTS, rollouts.tokens
    logits = policy(prompts, tokens)
    return Batch.of(
        rollouts,
        old_logprob=chosen_logprob(logits, tokens),
        entropy=shannon_entropy(logits),
        ref_logprob=chosen_logprob(reference(prompts, tokens), tokens) if reference else None,
        measures=recipe.measured(logits, live=False),
    )


def forward(policy: Policy, recipe: Recipe, batch: Batch) -> Batch:
    """Run the forward pass of an update."""

    logits = policy(batch.group % PROMPTS, batch.tokens)
    return replace(batch, logprob=chosen_logprob(logits, batch.tokens), live=recipe.measured(logits, live=True))
