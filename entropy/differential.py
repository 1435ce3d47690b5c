"""Differential entropies of continuous variables under a linear map or an activation function, in nats."""

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


def activation_entropy(inverse: torch.Tensor, x: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    """Compute the differential entropy of an invertible activation's output, in nats (EAFO, arXiv 2405.12954):

        H[y] = - int p(y) y' log(p(y) y') dx

    Args:
        inverse: `[n]`, y = the activation's inverse on a grid of outputs. x: `[n]`, that grid, rising. density: `[n]`,
            p(y) of the input there.
    """
    (slope,) = torch.gradient(inverse, spacing=(x,), edge_order=2)
    output = density * slope
    return -torch.trapezoid(torch.xlogy(output, output), x)


def entropy_derivative(
    slope: torch.Tensor, curvature: torch.Tensor, density: torch.Tensor, density_slope: torch.Tensor
) -> torch.Tensor:
    """Compute the functional derivative of `activation_entropy`, p'(y) y' + p(y) y''/y'; EAFO moves y against it.

    For the identity and a standard normal input that direction is x p(x): CRReLU's correction.
    """
    return density_slope * slope + density * curvature / slope


def entropy_change(slopes: torch.Tensor) -> torch.Tensor:
    """Compute how much a strictly increasing activation g changes the entropy of its input, in nats:
    H(g(X)) - H(X) = E log g'(X). `slopes`: g' at samples of X; of a ReLU, at those above 0 alone."""
    return slopes.log().mean()
