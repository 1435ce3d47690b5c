"""Rényi and Tsallis entropies: the two one-parameter families around Shannon entropy."""

from __future__ import annotations

import math

import torch

from waver.entropy.shannon import NEGLIGIBLE, centred, partition, shannon_entropy

NEAR_ONE = 0.1
"""Distance from order 1 within which another form is used: the textbook formula divides a rounding error by almost
0."""


def renyi_entropy(logits: torch.Tensor, alpha: float) -> torch.Tensor:
    """Compute the Rényi entropy H_α = log(Σ p^α) / (1 - α) of `softmax(logits)` in nats (Rényi 1961).

    α = 0 is the logarithm of the support's size (Hartley), α = 1 Shannon, α = 2 collision entropy, α = inf
    -log max p (min-entropy). It never grows with α. Shapes, types, gradients and masked rows are those of
    `shannon_entropy`.

    Raises:
        ValueError: α is negative or NaN, or the logits have no vocabulary axis.
        TypeError: the logits are not floating point.
    """
    if not alpha >= 0:
        raise ValueError(f"the order of a Rényi entropy must be at least 0, got {alpha}")
    if alpha == 1:
        return shannon_entropy(logits)
    c = centred(logits)
    if alpha * torch.finfo(c.dtype).eps > 1:  # differs from the limit by less than rounding
        return partition(c.exp()).log() - c.amax(-1).nan_to_num(neginf=0.0)
    if abs(alpha - 1) < NEAR_ONE:
        return _renyi_near_one(c, alpha)
    return (_power_sum(c, alpha).log() - alpha * partition(c.exp()).log()) / (1 - alpha)


def tsallis_entropy(logits: torch.Tensor, q: float) -> torch.Tensor:
    """Compute the Tsallis entropy S_q = (1 - Σ p^q) / (q - 1) of `softmax(logits)` (Tsallis 1988); no unit, but nats at
    q = 1, the Shannon limit.

    q = 0 is the support's size less 1, q = 2 the Gini impurity 1 - Σ p². Shapes, types, gradients and masked rows are
    those of `shannon_entropy`.

    Raises:
        ValueError: q is negative or not finite, or the logits have no vocabulary axis. TypeError: the logits are not
        floating point.
    """
    if not 0 <= q < math.inf:
        raise ValueError(f"the order of a Tsallis entropy must be finite and at least 0, got {q}")
    entropy = renyi_entropy(logits, q)
    # Σ p^q = exp((1 - q) H_q), so the Rényi entropy brings its accuracy near q = 1 along.
    return entropy if q == 1 else torch.expm1((1 - q) * entropy) / (1 - q)


def _power_sum(c: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sum exp(α c) over the tokens that can occur; an order of 0 counts them, whatever their probability."""
    powers = (alpha * c.clamp(min=torch.finfo(c.dtype).min)).exp()
    return partition(powers.masked_fill(c == -torch.inf, 0.0))


def _renyi_near_one(c: torch.Tensor, alpha: float) -> torch.Tensor:
    """Compute H_α = -log(1 + E_p[expm1((α - 1) log p)]) / (α - 1), which has no 0 / 0 at α = 1."""
    c = c.clamp(min=NEGLIGIBLE)
    z = partition(c.exp()).unsqueeze(-1)
    logprobs = c - z.log()
    # Far tails have weight 0; the floor keeps their growth finite, so that 0 · inf cannot arise.
    growth = torch.expm1((alpha - 1) * logprobs.clamp(min=-800.0))
    return torch.log1p((logprobs.exp() * growth).sum(-1)) / (1 - alpha)
