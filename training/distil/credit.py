"""Charge a token with the disagreement that it causes later: the gradient of DistIL's sequence-level objective.

With c_t the cost at position t and y drawn from the student (arXiv 2606.05152; the gradient by the product rule):

    L = E_y [sum_t c_t]
    grad L = E_y [sum_t grad c_t + sum_t grad ln p(y_t) G_t],  G_t = sum_{k > t} c_k, no gradient
"""

from __future__ import annotations

import torch

LARGEST_LOG_RATIO = 20.0


def future(cost: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return G, the sum of the costs strictly behind each position, `[B, T]`; 0 on padding."""
    kept = (cost * mask).detach()
    return (kept.flip(1).cumsum(1).flip(1) - kept) * mask


def centred(credit: torch.Tensor, mask: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return G less its mean at the same position over the rows of a group, `[B, T]`; 0 on padding.

    A row that has ended counts as 0 in the mean. The mean includes the row itself, which scales the expected gradient
    by 1 - 1/n; it adds no bias besides.

    Args:
        group: `[B]` integers.
    """
    places: torch.Tensor = group.unique(return_inverse=True)[1]
    sums = torch.zeros(int(places.max()) + 1, credit.shape[1], dtype=credit.dtype, device=credit.device)
    sums.index_add_(0, places, credit * mask)
    means = sums / places.bincount().unsqueeze(1)
    return (credit - means[places]) * mask


def surrogate(
    cost: torch.Tensor,
    logprob: torch.Tensor,
    old_logprob: torch.Tensor,
    credit: torch.Tensor,
    future_weight: float = 1.0,
    truncation: float = 2.0,
) -> torch.Tensor:
    """Return the `[B, T]` loss min(ratio, truncation) (c + future_weight G ln p), the ratio without gradient.

    Args:
        cost: `[B, T]` with gradient. logprob: `[B, T]` of the drawn tokens, with gradient.
        old_logprob: `[B, T]` under the policy that drew them. credit: `[B, T]`, G or G less a baseline.
    """
    moved = (logprob.detach() - old_logprob).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return moved.exp().clamp(max=truncation) * (cost + future_weight * credit.detach() * logprob)
