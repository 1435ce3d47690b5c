"""Differential entropies of continuous variables under a linear map, in nats."""

from __future__ import annotations

import math

import torch


def gaussian_map_entropy(singular_values: torch.Tensor, log_det: float = 0.0) -> torch.Tensor:
    """Compute the differential entropy of y = W x with Gaussian x and a square, invertible W, in nats:

        h(y) = d/2 log(2 pi e) + 1/2 log det(Cov x) + sum_i log sigma_i

    Among maps of one Frobenius norm it is largest where all singular values are equal, and falls as they spread
    (KappaTune, arXiv 2506.16289).

    Args:
        singular_values: `[..., d]`, those of W. log_det: log det of the covariance of x; 0 for white x.

    Returns:
        `[...]`; -inf where W is singular.
    """
    size = singular_values.shape[-1]
    return size / 2 * math.log(2 * math.pi * math.e) + log_det / 2 + singular_values.log().sum(-1)
