"""Estimate what one token's update does to entropy, to first order: covariance and discriminator, in nats.

For a softmax policy, a step of size eta r A on the log-probability of the token y changes the entropy of its
distribution by about -eta r A (S_y - E[S]) with S_i = p_i (H + ln p_i) (arXiv 2602.03392). With logits that move by
eta A for every token alike (natural policy gradient) it is -eta Cov(ln p, A) (arXiv 2505.22617, theorem 2).
"""

from __future__ import annotations

import torch

from waver.entropy import shannon_entropy


def covariance(logprob: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return each token's share of the covariance (arXiv 2505.22617, eq. 10): (ln p - mean) (A - mean), `[B, T]`.

    Means are over the valid tokens, and so is the covariance that the shares average to. No gradient; 0 on padding.
    """
    valid = mask > 0
    tokens = valid.sum().clamp(min=1)

    def centred(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().masked_fill(~valid, 0.0)
        return (x - x.sum() / tokens).masked_fill(~valid, 0.0)

    return centred(logprob) * centred(advantage)


def discriminator(logprob: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """Return S = p (H + ln p) of the sampled token: above 0 where p > exp(-H), and more of the token lowers the
    entropy."""
    return logprob.exp() * (entropy + logprob)


def expected_discriminator(logits: torch.Tensor) -> torch.Tensor:
    """Return E[S] under the policy, sum_i p_i S_i = H sum p^2 + sum p^2 ln p: `[..., vocab]` -> `[...]`.

    The `Measure` that goes by the name `nec`.
    """
    logprob = logits.log_softmax(-1)
    squares = (2 * logprob).exp()
    weighted = (squares * logprob).masked_fill(squares == 0, 0.0)
    return shannon_entropy(logits) * squares.sum(-1) + weighted.sum(-1)
