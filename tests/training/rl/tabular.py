"""Policies that are tables of logits, trained by a recipe with plain SGD: the smallest worlds.

A table `[prompts, positions, tokens]` shares nothing between its cells, so that all that happens to an entropy is the
method's doing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tests.training.rl.rows import rollouts
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, Recipe

Score = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass
class Table:
    """Logits, and the reward `[prompts, group]` of tokens `[prompts, group, positions]`."""

    theta: torch.Tensor
    score: Score
    generator: torch.Generator

    def entropy(self) -> float:
        return float(shannon_entropy(self.theta).mean())

    def train(self, recipe: Recipe, *, steps: int, group: int, updates: int, rate: float) -> Iterator[int]:
        """The number of each step, after it: rows are those of the recipe's main draw, groups of equal reward are left
        out, updates see all rows."""
        prompts, positions, _ = self.theta.shape
        where = torch.arange(prompts).repeat_interleave(group)
        for step in range(1, steps + 1):
            rule, logits = recipe.plan()[0].logits, self.theta.flatten(0, 1)
            shares = (logits if rule is None else rule(logits)).softmax(-1)
            draws = torch.multinomial(shares, group, True, generator=self.generator)
            tokens = draws.view(prompts, positions, group).transpose(1, 2)
            reward = self.score(tokens, self.generator)
            mixed = (reward != reward[:, :1]).any(1).repeat_interleave(group)
            tokens = tokens.flatten(0, 1)[mixed]
            cells = where[mixed]
            rows = rollouts(torch.ones(len(cells), positions), reward=reward.flatten()[mixed], group=cells)
            seen = self.theta[cells]
            batch = Batch.of(
                rows,
                old_logprob=self.chosen(seen, tokens),
                entropy=shannon_entropy(seen),
                measures=recipe.measured(seen, live=False),
            )
            batch, _ = recipe.control(recipe.advantages(batch))
            for _ in range(updates):
                theta = self.theta.detach().requires_grad_()
                seen = theta[cells]
                now = {"logprob": self.chosen(seen, tokens), "live": recipe.measured(seen, live=True)}
                loss, _ = recipe.loss(Batch(**vars(batch) | now))
                loss.backward()
                self.theta = (theta - rate * theta.grad).detach()
            yield step

    @staticmethod
    def chosen(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


class Keys(Table):
    """Thirty-two prompts of eight positions and ten tokens: at two key positions four tokens are right, the rest is
    all but certain and does not matter. A response is right if both keys are: 16 ways."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        theta = 0.5 * torch.randn(32, 8, 10, generator=g)
        self.keys = torch.stack([torch.randperm(8, generator=g)[:2] for _ in range(32)])
        self.right = torch.zeros(32, 2, 10)
        for prompt in range(32):
            for position in range(8):
                if position not in self.keys[prompt]:
                    theta[prompt, position, int(torch.randint(10, (1,), generator=g))] += 5
            for key in range(2):
                self.right[prompt, key, torch.randperm(10, generator=g)[:4]] = 1

        def score(tokens: torch.Tensor, _: torch.Generator) -> torch.Tensor:
            at_keys = tokens.gather(2, self.keys.unsqueeze(1).expand(-1, tokens.shape[1], -1))
            return self.right.gather(2, at_keys.transpose(1, 2)).prod(1)

        super().__init__(theta, score, g)

    def p_keys(self) -> torch.Tensor:
        """`[prompts, 2, tokens]`."""
        return self.theta.gather(1, self.keys.unsqueeze(2).expand(-1, -1, 10)).softmax(-1)

    def accuracy(self) -> float:
        return float((self.p_keys() * self.right).sum(-1).prod(1).mean())

    def ways(self) -> float:
        """exp(entropy over right responses), a mean over prompts: at most 16."""
        logits = (self.p_keys() * self.right).log()
        return float(shannon_entropy(logits).sum(1).exp().mean())

    def key_entropy(self) -> float:
        return float(shannon_entropy(self.p_keys().log()).mean())


class Bandits(Table):
    """Thirty-two bandits of twenty arms, each right with a probability of its own between 0.2 and 0.8."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.rates = 0.2 + 0.6 * torch.rand(32, 20, generator=g)
        theta = torch.randn(32, 1, 20, generator=g)

        def score(tokens: torch.Tensor, g: torch.Generator) -> torch.Tensor:
            rates = self.rates.gather(1, tokens.squeeze(2))
            return (torch.rand(rates.shape, generator=g) < rates).float()

        super().__init__(theta, score, g)

    def run(self, recipe: Recipe, steps: int = 250) -> Bandits:
        """Groups of eight, four updates a step of 0.6 / 8 for each row."""
        for _ in self.train(recipe, steps=steps, group=8, updates=4, rate=0.6 * 32):
            pass
        return self

    def success(self) -> float:
        return float((self.theta.softmax(-1).squeeze(1) * self.rates).sum(1).mean())
