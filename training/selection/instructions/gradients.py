"""Make the features of LESS from gradients: Adam's direction, a random projection, weights of checkpoints (arXiv
2602.14696, section 3.1, after arXiv 2402.04333)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from waver.training.texts import IGNORED, Text, padded

BETAS, EPSILON = (0.9, 0.999), 1e-8
BLOCK = 1 << 13
"""Parameters whose signs are in memory at a time."""


def adam_direction(gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the step that Adam would take: (b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps), not corrected for
    the start."""
    mean = BETAS[0] * m + (1 - BETAS[0]) * gradient
    return mean / (BETAS[1] * v + (1 - BETAS[1]) * gradient**2 + EPSILON).sqrt()


def epoch_weights(rates: Sequence[float]) -> list[float]:
    """Return the weights of checkpoints: the mean learning rates of their epochs, made to sum to 1."""
    total = sum(rates)
    return [rate / total for rate in rates] if total > 0 else [1 / len(rates)] * len(rates)


def epoch_rates(epochs: int, steps: int, warmup: int, rate: float) -> list[float]:
    """Return the mean learning rate of each epoch of a linear schedule with `steps` in each epoch."""
    total = epochs * steps
    every = [rate * (t / max(1, warmup) if t < warmup else (total - t) / max(1, total - warmup)) for t in range(total)]
    return [float(np.mean(every[i * steps : (i + 1) * steps])) for i in range(epochs)]


class Projection:
    """Projects gradients `[n, parameters]` to `[n, dimensions]` by a Rademacher matrix that a seed fixes; only a block
    of it is in memory."""

    def __init__(self, parameters: int, dimensions: int, seed: int = 0) -> None:
        self.parameters, self.dimensions, self.seed = parameters, dimensions, seed

    def __call__(self, gradients: torch.Tensor) -> torch.Tensor:
        made = torch.zeros(len(gradients), self.dimensions, device=gradients.device)
        for number, start in enumerate(range(0, self.parameters, BLOCK)):
            own = gradients[:, start : start + BLOCK].float()
            made += own @ self._signs(number, own.shape[1]).to(gradients.device)
        return made

    def _signs(self, number: int, count: int) -> torch.Tensor:
        size = count * self.dimensions
        data = np.random.default_rng([self.seed, number]).bytes((size + 7) // 8)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=size)
        return torch.from_numpy(bits.astype(np.float32) * 2 - 1).reshape(count, self.dimensions)


def loss_gradient(model: nn.Module, weights: Sequence[nn.Parameter], text: Text) -> torch.Tensor:
    """Return the gradient of the mean loss of the learned tokens, as one vector."""
    device = weights[0].device
    rows = {name: value.to(device) for name, value in padded([text]).items()}
    logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], use_cache=False).logits
    loss = cross_entropy(logits[0, :-1].float(), rows["labels"][0, 1:], ignore_index=IGNORED)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(weights))])


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale vectors to length 1; zero stays zero."""
    length: torch.Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / length.clamp_min(1e-12)
