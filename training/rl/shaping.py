"""Filter groups and penalise overlong answers, as DAPO does (arXiv 2503.14476)."""

from __future__ import annotations

import torch

from waver.training.rl.advantages import group_index


def mixed_groups(metric: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return dynamic sampling: the rows, `[B]` bool, of groups whose rows do not all have the same metric; groups of
    one stay.

    Take the accuracy for the metric, not a reward that also depends on length: else groups without a signal stay in.
    """
    index, sizes = group_index(group)
    values = metric.to(torch.float64)
    top = values.new_full((len(sizes),), -torch.inf).scatter_reduce_(0, index, values, "amax")
    bottom = values.new_full((len(sizes),), torch.inf).scatter_reduce_(0, index, values, "amin")
    return ((top > bottom) | (sizes == 1))[index]


def overlong_penalty(lengths: torch.Tensor, max_length: int, buffer: int) -> torch.Tensor:
    """Return the penalty to add to the reward of a response of that many tokens (eq. 13): 0 until the buffer begins,
    then falling linearly to -1 at `max_length`. `[B]`."""
    return ((max_length - buffer - lengths) / buffer).clamp(-1.0, 0.0)
