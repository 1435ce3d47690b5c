"""Small experiments on methods that change weights, each in seconds to a minute of one core.

Every experiment takes a seed and returns measures by the way that is compared; `waver bench weights` runs them over
seeds, the tests a small one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu, mse_loss

from waver.training.tuning.kappatune import candidates, ranked

# KappaTune: a soft mixture of experts learns task A, then task B with few of its tensors.

WIDTH, EXPERTS, TRAINED = 32, 8, 5
Found = dict[str, dict[str, float]]


class Mixture(nn.Module):
    """Eight experts with two square matrices each, behind a frozen soft router."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()

        def orthogonal(scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0])

        self.first = nn.ParameterList(orthogonal(1.0) for _ in range(EXPERTS))
        self.second = nn.ParameterList(orthogonal(0.5) for _ in range(EXPERTS))
        self.router = torch.randn(EXPERTS, WIDTH, generator=generator) * 2 / math.sqrt(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = (x @ self.router.T).softmax(-1)
        made = [gelu(x @ a.T) @ b.T for a, b in zip(self.first, self.second, strict=True)]
        return (gates.unsqueeze(-1) * torch.stack(made, -2)).sum(-2)


@dataclass(frozen=True)
class Regression:
    """A task of the mixture: how often each expert's region is visited, and what is to be answered."""

    histogram: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    router: torch.Tensor

    def draw(self, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        region = torch.multinomial(self.histogram, rows, replacement=True, generator=generator)
        centre = self.router / self.router.norm(dim=-1, keepdim=True)
        x = torch.randn(rows, WIDTH, generator=generator) + 0.9 * math.sqrt(WIDTH) * centre[region]
        return x, 0.5 * (x @ self.first).tanh() @ self.second


def kappatune(seed: int, selections: Iterable[str] = ("lowest", "random", "highest", "all")) -> Found:
    """Return how many times larger the loss on task A is after task B was learned to 0.7 of its loss."""
    generator = torch.Generator().manual_seed(seed)
    model = Mixture(generator)

    def task(histogram: torch.Tensor) -> Regression:
        first = torch.randn(WIDTH, 6, generator=generator) / math.sqrt(WIDTH)
        return Regression(histogram, first, torch.randn(6, WIDTH, generator=generator), model.router)

    first_task, second_task = task(1 / torch.arange(1.0, EXPERTS + 1) ** 2), task(torch.ones(EXPERTS))
    judged = [each.draw(4096, generator) for each in (first_task, second_task)]

    def loss(of: Mixture, place: int) -> float:
        with torch.no_grad():
            return float(mse_loss(of(judged[place][0]), judged[place][1]))

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(600):
        _fit(model, optimizer, *first_task.draw(128, generator))
    order = [each.name for each in ranked(candidates(model.named_parameters()))]
    shuffled = [order[i] for i in torch.randperm(len(order), generator=generator)]
    chosen = {"lowest": order[:TRAINED], "random": shuffled[:TRAINED], "highest": order[-TRAINED:], "all": order}
    drawn = torch.Generator().manual_seed(seed + 1000)
    found = {}
    for name in selections:
        tuned = deepcopy(model)
        drawn.manual_seed(seed + 1000)
        optimizer = torch.optim.Adam([p for n, p in tuned.named_parameters() if n in chosen[name]], lr=2e-3)
        goal = 0.7 * loss(tuned, 1)
        for step in range(6000):
            if step % 2 == 0 and loss(tuned, 1) <= goal:
                break
            tuned.zero_grad()
            _fit(tuned, optimizer, *second_task.draw(128, drawn))
        found[name] = {"forgetting": loss(tuned, 0) / loss(model, 0)}
    return found


def _fit(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    mse_loss(model(x), y).backward()
    optimizer.step()


EXPERIMENTS: dict[str, Callable[[int], Found]] = {
    "kappatune": kappatune,
}
