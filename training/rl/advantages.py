"""Turn the rewards of a group into one advantage for each row: GRPO, Dr.GRPO, RLOO, or scaled by the whole batch."""

from __future__ import annotations

from typing import Literal

import torch

from waver.training.rl.batch import at_least_float32

Estimator = Literal["grpo", "dr_grpo", "rloo", "batch", "maxrl"]


def group_index(group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return groups numbered from 0, `[B]`, and their sizes, `[groups]`. Rows of a group need not lie side by side."""
    _, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    return index, sizes


def group_mean(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return the mean of each row's group, `[B]`."""
    index, sizes = group_index(group)
    return (values.new_zeros(len(sizes)).index_add_(0, index, values) / sizes)[index]


def group_spread(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of each row's group, `[B]`, with divisor n - 1; 0 for a group of one."""
    index, sizes = group_index(group)
    squares = (values - group_mean(values, group)).square()
    return (values.new_zeros(len(sizes)).index_add_(0, index, squares) / (sizes - 1).clamp(min=1)).sqrt()[index]


def advantages(
    reward: torch.Tensor, group: torch.Tensor, estimator: Estimator = "grpo", eps: float = 1e-6
) -> torch.Tensor:
    """Return one advantage for each row, without gradient.

    With r the reward, mu and sd mean and standard deviation (divisor n - 1) of the row's group of G:

    - `grpo` (arXiv 2402.03300): (r - mu) / (sd + eps)
    - `dr_grpo` (arXiv 2503.20783): r - mu
    - `rloo` (arXiv 2402.14740): r minus the mean of the other rows, G / (G - 1) (r - mu)
    - `maxrl`: that of `grpo`, times G / K where K rows of the group, some and not all, have a reward above 0 (as in
      BES, arXiv 2605.28814; a group with one right row in eight has advantages near 20: clip gradients)
    - `batch`: (r - mu) / (sd of all rewards + eps), TRL's `scale_rewards="batch"`

    A group of one has mean 0 and spread 1, as in verl, so its advantage is its reward (over 1 + eps for `grpo`). A
    group of equal rewards has advantage 0 exactly: no rounding error of the mean is divided by eps.

    Args:
        reward: `[B]`. group: `[B]`, the same integer for the rows of one prompt.
        eps: added to the divisor; 1e-6 in verl, 1e-4 in TRL.
    """
    reward = at_least_float32(reward.detach())
    index, sizes = group_index(group)
    size = sizes[index]
    alone = size == 1
    top = reward.new_full((len(sizes),), -torch.inf).scatter_reduce_(0, index, reward, "amax")[index]
    bottom = reward.new_full((len(sizes),), torch.inf).scatter_reduce_(0, index, reward, "amin")[index]
    centred = torch.where(alone, reward, (reward - group_mean(reward, group)).masked_fill(top == bottom, 0.0))
    match estimator:
        case "grpo":
            return centred / (group_spread(reward, group).masked_fill(alone, 1.0) + eps)
        case "maxrl":
            own = centred / (group_spread(reward, group).masked_fill(alone, 1.0) + eps)
            share = group_mean((reward > 0).to(reward.dtype), group)
            return own / torch.where((share > 0) & (share < 1), share, 1.0)
        case "dr_grpo":
            return centred
        case "rloo":
            return centred * torch.where(alone, 1.0, size / (size - 1).clamp(min=1)).to(reward.dtype)
        case "batch":
            return centred / (reward.std() + eps if len(reward) > 1 else 1 + eps)
