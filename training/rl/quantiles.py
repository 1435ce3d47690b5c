"""Compute the quantile of all tokens of a step: torch's own refuses more than 2^24 values."""

from __future__ import annotations

import math

import torch


def quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """Return the quantile of all values, a scalar, interpolated linearly as `torch.quantile` does; NaN without any.

    Args:
        values: of any shape, without NaN. q: from 0 to 1.
    """
    flat = values.flatten()
    if not len(flat):
        return values.new_full((), torch.nan)
    place = q * (len(flat) - 1)
    below = math.floor(place)
    low = flat.kthvalue(below + 1).values
    if place == below:
        return low
    return torch.lerp(low, flat.kthvalue(below + 2).values, place - below)
