"""Shannon entropy and varentropy of the softmax distribution, computed from logits."""

from __future__ import annotations

import torch

NEGLIGIBLE = -1e4
"""A centred logit below this has probability exactly 0 in float32 and float64 alike: `exp` underflows near -745."""


def centred(logits: torch.Tensor) -> torch.Tensor:
    """Subtract each row's largest logit, so that `exp` cannot overflow: `[..., vocab]`, all `<= 0`, at least float32.

    A row with nothing but `-inf` stays that way. No gradient flows through the shift, which no entropy depends on.

    Raises:
        ValueError: `logits` has no vocabulary axis, or an empty one.
        TypeError: `logits` are not floating point.
    """
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits need a last axis with the vocabulary, got shape {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    peak = logits.detach().amax(-1, keepdim=True).to(torch.promote_types(logits.dtype, torch.float32))
    return logits - peak.clamp_(min=torch.finfo(peak.dtype).min)


def partition(weights: torch.Tensor) -> torch.Tensor:
    """Sum `exp(centred)` over the vocabulary; the largest term is 1, so the sum is smaller in all-masked rows only,
    which count as 1."""
    return weights.sum(-1).clamp(min=1.0)


def shannon_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Compute the Shannon entropy H = -Σ p log p of `softmax(logits)`, in nats.

    With c = logits - max and Z = Σ exp(c), H = log Z - Σ exp(c) c / Z. Both terms are `>= 0`, so nothing cancels:
    float32 is within 1e-4 nats of float64 for any vocabulary and scale.

    Args:
        logits: `[..., vocab]`, any floating type. `-inf` marks a token that cannot occur; a row of nothing but `-inf`
            has entropy 0. NaN or `+inf` in a row make that row NaN, and no other.

    Returns:
        `[...]`, float64 for float64 logits, float32 for anything smaller. Gradients flow and are finite.

    Raises:
        ValueError: there is no vocabulary axis, or an empty one.
        TypeError: the logits are not floating point.
    """
    c = centred(logits).clamp_(min=NEGLIGIBLE)
    weights = c.exp()
    z = partition(weights)
    weighted = weights * c if c.requires_grad else c.mul_(weights)  # without gradients two vocabulary-sized buffers do
    return z.log() - weighted.sum(-1) / z


def varentropy(logits: torch.Tensor) -> torch.Tensor:
    """Compute the variance of the surprisal, Var[-log p] under p = `softmax(logits)`, in nats squared.

    0 for a uniform row, a one-hot row and an all-masked row. Shapes, types, gradients and errors are those of
    `shannon_entropy`.
    """
    c = centred(logits).clamp_(min=NEGLIGIBLE)
    weights = c.exp()
    z = partition(weights)
    mean = (weights * c).sum(-1, keepdim=True) / z.unsqueeze(-1)
    deviation = c - mean if c.requires_grad else c.sub_(mean)
    return (weights * deviation.square()).sum(-1) / z
