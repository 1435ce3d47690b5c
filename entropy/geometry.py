"""Distances between tokens: whitened embeddings, and potentials that grow towards a set of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch

Geometry = torch.Tensor | Callable[[], torch.Tensor]
"""The whitened embeddings, `[vocab, dim]`, or a function that makes them when they are needed. They may be in the
host's memory while the logits are on a device."""

VARIANCE_FLOOR = 1e-6
NORM_FLOOR = 1e-12
BLOCK = 1 << 24
"""Most numbers in one block of embeddings or distances (64 MiB in float32)."""
CACHED = 1 << 18
"""The same where a CPU multiplies them: the copied block should stay in its cache."""


@torch.no_grad()
def whiten(embedding: torch.Tensor) -> torch.Tensor:
    """Whiten embeddings: z-scores of each dimension over the vocabulary (divisor vocab), then rows of unit length.

    Args:
        embedding: `[vocab, dim]`, any floating type; it is left as it is.

    Returns:
        `[vocab, dim]` float32 on the same device: 4 · vocab · dim bytes (2.3 GiB for 151,936 tokens of 4,096
        dimensions), and nothing of that size beside it while it is made.

    Raises:
        ValueError: the matrix does not have two dimensions, or an entry that is not finite.
    """
    if embedding.ndim != 2 or not embedding.numel():
        raise ValueError(f"an embedding matrix is [vocab, dim], got shape {tuple(embedding.shape)}")
    rows = embedding.detach().to(torch.float32, copy=True)
    variance, mean = torch.var_mean(rows, dim=0, correction=0)
    if not torch.isfinite(variance).all():
        raise ValueError("the embedding matrix has entries that are not finite")
    rows.sub_(mean).div_(variance.clamp(min=VARIANCE_FLOOR).sqrt())
    for block in rows.split(max(1, BLOCK // rows.shape[1])):
        block /= torch.linalg.vector_norm(block, dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
    return rows


def distances(cosines: torch.Tensor, chord: torch.Tensor) -> torch.Tensor:
    """Turn cosines into distances: `1 - cos`, or where `chord` (broadcast) the chord √(2 - 2 cos), which is a
    metric."""
    gap = 1 - cosines.clamp(-1, 1)
    return torch.where(chord, (2 * gap).sqrt(), gap)


def pairwise_distances(geometry: torch.Tensor, ids: torch.Tensor, n: int, chord: torch.Tensor) -> torch.Tensor:
    """Compute the distances of the first `n` tokens of each row to all of the row: `[rows, n, m]` float32.

    Args:
        geometry: `[vocab, dim]`, whitened. ids: `[rows, m]`, no token twice in a row; m >= n.
        chord: `[rows, 1]` bool, whether distances are chords.
    """
    m = ids.shape[1]
    room = max(1, (BLOCK if ids.is_cuda else CACHED) // geometry.shape[1])  # embeddings that are copied at a time
    cosines = []
    for part in ids.split(max(1, room // (n + m))):
        points = _embeddings(geometry, part[:, :n])
        some = part.split(max(1, room // len(part)), dim=1)
        cosines.append(torch.cat([points @ _embeddings(geometry, each).transpose(1, 2) for each in some], dim=-1))
    gaps = distances(torch.cat(cosines), chord[:, :, None])
    gaps.diagonal(dim1=1, dim2=2).zero_()
    return gaps


def potential(gaps: torch.Tensor, inside: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """Compute the potential of tokens towards a set: `f = -min d` or `f = -(mean of the k smallest d)`, 0 at best:
    `[rows, n]` float32.

    Args:
        gaps: `[rows, n, m]`, from `pairwise_distances`: a member is at distance 0 from itself, and counts.
        inside: `[rows, m]`, which tokens are the row's set: at least one.
        neighbours: `[rows, 1]`, k; 0 for the nearest one alone.
    """
    away = gaps.masked_fill(~inside[:, None, :], torch.inf)
    most = min(int(neighbours.max()), gaps.shape[-1])
    if most <= 1:
        return -away.amin(-1)
    near = away.topk(most, largest=False).values
    k = neighbours.clamp(min=1)[:, :, None]
    counted = (torch.arange(most, device=gaps.device) < k) & (near < torch.inf)
    return -near.masked_fill_(~counted, 0.0).sum(-1) / counted.sum(-1)


def _embeddings(geometry: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Gather `geometry[ids]` on the device of the ids, by whole rows: on a CPU several times as fast as by index."""
    rows = geometry.index_select(0, ids.flatten().to(geometry.device))
    return rows.to(ids.device).view(*ids.shape, -1)
