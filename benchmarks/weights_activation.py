"""A small experiment on CRReLU: a network of three hidden layers learns a rough function, with each activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import nn

from waver.engines.activations import CRReLU
from waver.training.tuning.crrelu import optimizer

INPUTS, WIDTH, STEPS, BATCH, RATE = 8, 24, 1500, 128, 3e-3
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "crrelu": CRReLU, "gelu": nn.GELU}


def crrelu(seed: int, steps: int = STEPS, activations: Iterable[str] = ACTIVATIONS) -> dict[str, dict[str, float]]:
    """Return by activation the squared error on fresh points as a part of the target's variance; of CRReLU also the
    mean of its coefficients."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(INPUTS, 3, generator=generator) / math.sqrt(INPUTS)

    def target(x: torch.Tensor) -> torch.Tensor:
        along = x @ directions
        return 2 * (3 * along).sin().prod(-1) + 0.3 * along[:, 0].square()

    judged = torch.randn(8192, INPUTS, generator=generator)
    wanted = target(judged)
    found = {}
    for name in activations:
        torch.manual_seed(seed)
        drawn = torch.Generator().manual_seed(seed + 1000)
        sizes = (INPUTS, WIDTH, WIDTH, WIDTH)
        hidden = [[nn.Linear(a, b), ACTIVATIONS[name]()] for a, b in pairwise(sizes)]
        model = nn.Sequential(*(each for pair in hidden for each in pair), nn.Linear(WIDTH, 1))
        made = optimizer(model, RATE, weight_decay=1e-4)
        for _ in range(steps):
            x = torch.randn(BATCH, INPUTS, generator=drawn)
            made.zero_grad()
            (model(x).squeeze(-1) - target(x)).square().mean().backward()
            made.step()
        with torch.no_grad():
            error = (model(judged).squeeze(-1) - wanted).square().mean() / wanted.var()
            learned = [float(module.eps.detach()) for module in model if isinstance(module, CRReLU)]
        found[name] = {"error": float(error), "eps": sum(learned) / len(learned) if learned else 0.0}
    return found
