"""Draw tokens by inverse transform sampling: the token at a point of each row's running sum of probabilities."""

from __future__ import annotations

import numpy as np
import torch

from waver.devices import array_namespace

BLOCK = 256
"""Tokens in a block, on a device."""


def warm_up(device: torch.device) -> None:
    """Compile the kernels for this device, so that no request waits for it."""
    if array_namespace(device) is np:
        import waver.entropy.cpu_kernels  # noqa: F401  # Numba compiles it


def sample(logits: torch.Tensor, temperatures: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Draw from `softmax(logits / temperature)`: `[rows]` ids.

    Args:
        logits: `[rows, vocab]` float32; `-inf` is never drawn. temperatures: `[rows]` float32, above 0.
        points: `[rows]` float64 in [0, 1).
    """
    if array_namespace(logits.device) is torch:
        return sample_blockwise(logits, temperatures, points)

    from waver.entropy import cpu_kernels

    tokens = np.empty(len(logits), np.int64)
    cpu_kernels.sample(logits.contiguous().numpy(), temperatures.numpy(), points.numpy(), tokens)
    return torch.from_numpy(tokens)


def sample_blockwise(logits: torch.Tensor, temperatures: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Do `sample` in torch, in two steps: by the masses of blocks, and then inside one block. Running sums over a whole
    vocabulary in float64 would take several times as long as all the rest."""
    weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperatures[:, None]).exp_()
    vocabulary = weights.shape[-1]
    full = vocabulary // BLOCK * BLOCK
    masses = weights[:, :full].unflatten(1, (full // BLOCK, BLOCK)).sum(-1, dtype=torch.float64)
    if full < vocabulary:
        masses = torch.cat([masses, weights[:, full:].sum(-1, keepdim=True, dtype=torch.float64)], dim=1)
    cumulative = masses.cumsum(dim=-1)
    point = points[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, point, right=True).clamp(max=masses.shape[1] - 1)
    before = (cumulative - masses).gather(1, block)
    ids = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    own = weights.gather(1, ids.clamp(max=vocabulary - 1)).double() * (ids < vocabulary)
    inside = own.cumsum(dim=-1)
    # Rounding must not lead out of the block, to a token that may have no weight.
    rest = torch.minimum((point - before).clamp(min=0), inside[:, -1:] * (1 - 2.0**-50))
    tokens: torch.Tensor = (block * BLOCK + torch.searchsorted(inside, rest, right=True))[:, 0]
    return tokens
