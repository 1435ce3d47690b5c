"""Sources of bits whose structure is known, and a small network that predicts the next one of eight."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from waver.training.selection.epiplexity.estimate import Estimate, Settings, estimate

CONTEXT = 8
Bits = tuple[torch.Tensor, torch.Tensor]


class BitCoding:
    """Codes the next bit behind eight."""

    def logits(self, model: nn.Module, batch: Bits) -> tuple[torch.Tensor, torch.Tensor]:
        return model(batch[0]), batch[1]

    @torch.no_grad()
    def redraw(self, model: nn.Module, batch: Bits, generator: torch.Generator) -> Bits:
        return batch[0], torch.multinomial(model(batch[0]).softmax(-1), 1, generator=generator)[:, 0]


def draw(source: str, n: int, rng: np.random.Generator) -> Bits:
    """Draw contexts of eight bits (as -1 and 1) and the bit behind each."""
    bits = rng.integers(0, 2, (n, CONTEXT))
    if source == "coin":
        target = rng.integers(0, 2, n)
    elif source == "period":
        bits = (np.arange(CONTEXT) + rng.integers(0, 2, (n, 1))) % 2
        target = bits[:, 0]
    elif source == "copy":
        target = bits[:, -1] ^ (rng.random(n) < 0.1)
    else:
        table = np.random.default_rng(0).integers(0, 2, 2**CONTEXT)
        target = table[bits @ (1 << np.arange(CONTEXT))] ^ (rng.random(n) < float(source) / 100)
    return torch.tensor(2.0 * bits - 1, dtype=torch.float32), torch.tensor(target, dtype=torch.long)


def code(source: str, seed: int = 0, steps: int = 1500, requential: bool = True, last: int = 200) -> Estimate:
    """Estimate S and H of a source: `coin`, `period`, `copy`, or the percentage of flips of a random table."""
    rng = np.random.default_rng(seed)
    contexts, targets = draw(source, 64 * steps, rng)
    batches = list(zip(contexts.split(64), targets.split(64), strict=True))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(CONTEXT, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)

    def adam(of: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(of.parameters(), lr=3e-3, betas=(0.9, 0.99), fused=True)

    settings = Settings(warmup=0, clip=None, requential=requential, points=1, last=last, seed=seed)
    return estimate(model, BitCoding(), batches, [draw(source, 4000, rng)], adam, settings)
