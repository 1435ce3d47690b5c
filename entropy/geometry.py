"""Distances between tokens: the whitened embedding matrix, and potentials that grow towards a set of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch

Geometry = torch.Tensor | Callable[[], torch.Tensor]
"""The whitened embeddings, `[vocab, dim]`, or what has them made when they are needed. They may lie in the host's
memory while the logits are on a device."""

VARIANCE_FLOOR = 1e-6
NORM_FLOOR = 1e-12
BLOCK = 1 << 24
"""Most numbers in one block of embeddings or distances (64 MiB in float32)."""


@torch.no_grad()
def whiten(embedding: torch.Tensor) -> torch.Tensor:
    """Z-scores of each dimension over the vocabulary (divisor vocab), then rows of unit length.

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
    """`1 - cos`, or where `chord` (broadcast) the chord √(2 - 2 cos), which is a metric."""
    gap = 1 - cosines.clamp(-1, 1)
    return torch.where(chord, (2 * gap).sqrt(), gap)


def potential(
    geometry: torch.Tensor,
    tokens: torch.Tensor,
    members: torch.Tensor,
    inside: torch.Tensor,
    chord: torch.Tensor,
    neighbours: torch.Tensor,
) -> torch.Tensor:
    """How near tokens are to a set: `f = -min d` or `f = -(mean of the k smallest d)`, 0 at best.

    Args:
        geometry: `[vocab, dim]`, whitened.
        tokens: `[rows, n]` ids to give a potential to.
        members: `[rows, m]` ids, of which those `inside` (`[rows, m]`, at least one a row) are the row's set.
        chord: `[rows]`, whether distances are chords.
        neighbours: `[rows]`, k; 0 for the nearest one alone. A member counts itself, at distance 0.

    Returns:
        `[rows, n]` float32.
    """
    rows, m = members.shape
    anchors = _points(geometry, members).transpose(1, 2)
    block = max(1, BLOCK // (rows * max(m, geometry.shape[1])))
    chord, most = chord[:, None, None], int(neighbours.max())
    parts = []
    for part in tokens.split(block, dim=1):
        gaps = distances(_points(geometry, part) @ anchors, chord)
        gaps = gaps.masked_fill(part[:, :, None] == members[:, None, :], 0.0).masked_fill(
            ~inside[:, None, :], torch.inf
        )
        near = gaps.amin(-1)
        if most > 1:
            least = gaps.topk(min(most, m), largest=False).values
            counted = (
                torch.arange(least.shape[-1], device=least.device) < neighbours[:, None, None]
            ) & least.isfinite()
            mean = least.masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)
            near = torch.where(neighbours[:, None] > 1, mean, near)
        parts.append(near)
    return -torch.cat(parts, dim=1)


def _points(geometry: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """`geometry[ids]`, where the ids are: whole rows are copied, several times as fast as by index on a CPU."""
    rows = geometry.index_select(0, ids.flatten().to(geometry.device))
    return rows.to(ids.device).view(*ids.shape, -1)
