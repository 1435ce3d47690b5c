"""Entropy of attention rows: how widely each head looks at each place, in nats."""

from __future__ import annotations

import torch

FLOOR = 1e-9
"""Added inside the logarithm alone, so that a one-hot row has -1e-9 and not 0."""


def row_entropy(attention: torch.Tensor) -> torch.Tensor:
    """Compute -sum a log(a + 1e-9) of each row (Entropy-Guided Attention, arXiv 2501.03489): `[..., queries, keys]` ->
    `[..., queries]`, at least float32."""
    wide = attention if attention.dtype == torch.float64 else attention.float()
    return -(wide * (wide + FLOOR).log()).sum(-1)


def head_fractions(attention: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute each head's mean row entropy as a part of the row's own largest, log(row's place + 1): near 0 a head
    looks at single places (collapse), near 1 everywhere alike (overload).

    Args:
        attention: `[rows, heads, queries, keys]`, causal and from the first place on. mask: `[rows, queries]`, 1 where
            there is text.

    Returns:
        `[heads]`. The first place, which has one key, is left out.
    """
    found = row_entropy(attention)[..., 1:]
    places = torch.arange(2, attention.shape[-2] + 1, device=found.device, dtype=found.dtype)
    fractions = found / places.log()
    if mask is None:
        return fractions.mean((0, 2))
    kept = mask[:, None, 1:].to(found.dtype).expand_as(fractions)
    return (fractions * kept).sum((0, 2)) / kept.sum((0, 2))
