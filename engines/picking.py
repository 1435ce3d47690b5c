"""The draw itself: the token at a point of each row's running sum of probabilities."""

from __future__ import annotations

import numpy as np
import torch

from waver.entropy.sending import library

STRIDE = 256
"""Tokens of a block on a device."""


def prepare(device: torch.device) -> None:
    """Have ready what draws on this device: no request should wait for it."""
    if library(device) is np:
        import waver.entropy.sweep  # noqa: F401  # Numba compiles it


def pick(logits: torch.Tensor, temperatures: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Draw from `softmax(logits / temperature)`: `[rows]` ids.

    Args:
        logits: `[rows, vocab]` float32; `-inf` is never drawn. temperatures: `[rows]` float32, above 0.
        points: `[rows]` float64 in [0, 1).
    """
    if library(logits.device) is torch:
        return stride(logits, temperatures, points)
    from waver.entropy import sweep

    tokens = np.empty(len(logits), np.int64)
    sweep.pick(logits.contiguous().numpy(), temperatures.numpy(), points.numpy(), tokens)
    return torch.from_numpy(tokens)


def stride(logits: torch.Tensor, temperatures: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """`pick` by torch, in two strides: through the masses of blocks and then inside one block. Running sums over a
    whole vocabulary in float64 take several times as long as all the rest."""
    weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperatures[:, None]).exp_()
    vocabulary = weights.shape[-1]
    full = vocabulary // STRIDE * STRIDE
    masses = weights[:, :full].unflatten(1, (full // STRIDE, STRIDE)).sum(-1, dtype=torch.float64)
    if full < vocabulary:
        masses = torch.cat([masses, weights[:, full:].sum(-1, keepdim=True, dtype=torch.float64)], dim=1)
    cumulative = masses.cumsum(dim=-1)
    point = points[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, point, right=True).clamp(max=masses.shape[1] - 1)
    before = (cumulative - masses).gather(1, block)
    ids = block * STRIDE + torch.arange(STRIDE, device=weights.device)
    own = weights.gather(1, ids.clamp(max=vocabulary - 1)).double() * (ids < vocabulary)
    inside = own.cumsum(dim=-1)
    # Rounding must not lead out of the block, to where there may be no weight.
    rest = torch.minimum((point - before).clamp(min=0), inside[:, -1:] * (1 - 2.0**-50))
    tokens: torch.Tensor = (block * STRIDE + torch.searchsorted(inside, rest, right=True))[:, 0]
    return tokens
