"""Compute how hard an instance is: the lower bound on the number of samples that tell it from others (arXiv
2010.15382). Bounds of different kinds have different constants, and never share a grid of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def best_arm(means: torch.Tensor) -> torch.Tensor:
    """Return the sum over other arms of 1 / gap^2 to the best, of means `[..., arms]`; infinite at a tie."""
    gaps = means.max(-1, keepdim=True).values - means
    best = torch.nn.functional.one_hot(means.argmax(-1), means.shape[-1]).bool()
    return torch.where(best, 0.0, 1 / gaps.masked_fill(best, 1.0) ** 2).sum(-1)


def threshold(noise: float) -> float:
    """Return 1 / (1 - 2 noise)^2 of a threshold whose labels are flipped with this probability."""
    return 1 / (1 - 2 * noise) ** 2


def linear(
    queries: Sequence[Sequence[float]], answers: Sequence[Sequence[float]], theta: Sequence[float]
) -> tuple[float, list[float]]:
    """Return the complexity of finding the answer z with the largest z . theta, and the best shares of the queries.

    It is the least over shares l of the largest over z of |z* - z|^2 in the inverse of sum_x l_x x x^T, over
    ((z* - z) . theta)^2. Found by minimising a smooth maximum that sharpens.

    Raises:
        ValueError: the queries do not span the space, or the best answer is not alone.
    """
    x, z, truth = (torch.tensor(each, dtype=torch.float64) for each in (queries, answers, theta))
    if int(torch.linalg.matrix_rank(x)) < x.shape[1]:
        raise ValueError("the queries do not span the space of the answers")
    values = z @ truth
    best = int(values.argmax())
    others = torch.arange(len(z)) != best
    gaps = values[best] - values[others]
    if float(gaps.min()) <= 0:
        raise ValueError("two answers are best: their complexity is infinite")
    differences = z[best] - z[others]
    weights = torch.zeros(len(x), dtype=torch.float64, requires_grad=True)

    def ratios() -> torch.Tensor:
        inverse = torch.linalg.inv((x.T * weights.softmax(0)) @ x)
        return torch.einsum("ni,ij,nj->n", differences, inverse, differences) / gaps**2

    for power in range(1, 8):
        sharp = 10.0**power
        optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-15)

        def smooth(sharp: float = sharp, optimizer: torch.optim.LBFGS = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = (sharp * ratios().log()).logsumexp(0) / sharp
            value.backward()
            return value

        optimizer.step(smooth)
    with torch.no_grad():
        return float(ratios().max()), weights.softmax(0).tolist()
