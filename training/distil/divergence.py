"""Compute how far a student's next-token distribution is from an expert's, of which the most likely tokens are known.

All tokens that the expert does not name are one bucket, the tail. Grouping tokens never makes a divergence larger, so
that cross-entropy, KL and JS of the buckets bound those of the whole distributions from below; they are exact where the
tokens that are named are the whole vocabulary. `q` is the expert, `p` the student; nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from waver.training.distil.names import DivergenceName

LARGEST_MASS = -1e-7
"""Logarithm of the most mass that named tokens may have, so that the tail has a logarithm."""


@dataclass(frozen=True)
class Expert:
    """An expert's distributions.

    Args:
        ids: `[..., K]` tokens that it names. logq: `[..., K]` their log-probabilities, -inf for places that count for
            nothing (a token named twice, fewer than K names).
        complete: whether all mass is in the named tokens.
    """

    ids: torch.Tensor
    logq: torch.Tensor
    complete: bool = False

    def entropy(self) -> torch.Tensor:
        """Return the entropy of the buckets, `[...]`: the least that the expert's can be."""
        logq = with_tail(self.logq, self.complete)
        return -_weighted(logq.exp(), logq)

    def tail(self) -> torch.Tensor:
        """Return the mass that is not named, `[...]`."""
        return with_tail(self.logq, self.complete)[..., -1].exp()

    def most_entropy(self, vocabulary: int) -> torch.Tensor:
        """Return the most that the expert's entropy can be, `[...]`: that of a tail spread over all other tokens."""
        named = (self.logq > -math.inf).sum(-1)
        return self.entropy() + self.tail() * (vocabulary - named).clamp(min=1).log()


def with_tail(log_named: torch.Tensor, complete: bool) -> torch.Tensor:
    """Return log-probabilities `[..., K]` with that of the tail behind them, `[..., K + 1]`; -inf if there is none."""
    if complete:
        rest = torch.full_like(log_named[..., :1], -math.inf)
    else:
        rest = torch.log(-torch.expm1(log_named.logsumexp(-1, keepdim=True).clamp(max=LARGEST_MASS)))
    return torch.cat([log_named, rest], -1)


def student_of(logits: torch.Tensor, expert: Expert) -> torch.Tensor:
    """Return the student's log-probabilities in the expert's buckets, `[..., K + 1]`.

    Args:
        logits: `[..., vocab]`.
    """
    logp = logits.gather(-1, expert.ids) - logits.logsumexp(-1, keepdim=True)
    return with_tail(logp.masked_fill(expert.logq == -math.inf, -math.inf), expert.complete)


def cost(
    logp: torch.Tensor, expert: Expert, divergence: DivergenceName = "forward", alpha: float = 0.5
) -> torch.Tensor:
    """Return the cost at each position, `[...]` nats, with the gradient of `logp`.

    - `forward`: the cross-entropy -sum q log p, which is KL(q || p) plus the entropy of q.
    - `reverse`: KL(p || q).
    - `js`: (1 - alpha) KL(p || m) + alpha KL(q || m), m = (1 - alpha) p + alpha q.

    Args:
        logp: `[..., K + 1]`, of `student_of`.
    """
    logq = with_tail(expert.logq, expert.complete)
    p, q = logp.exp(), logq.exp()
    match divergence:
        case "forward":
            return -_weighted(q, logp)
        case "reverse":
            # Where the expert has no mass at all the divergence is infinite: its float32 has none below e^-100.
            return _weighted(p, logp) - _weighted(p, logq.clamp(min=-100.0))
        case "js":
            mixed = (1 - alpha) * p + alpha * q
            logm = torch.where(mixed > 0, mixed, 1.0).log()
            own = _weighted(p, logp) - (p * logm).sum(-1)
            return (1 - alpha) * own + alpha * (_weighted(q, logq) - (q * logm).sum(-1))


def _weighted(weight: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
    """Return the sum of weight times log over the last dimension; -inf counts for nothing where the weight is 0."""
    empty = (weight == 0) | (log == -math.inf)
    return (weight.masked_fill(empty, 0.0) * log.masked_fill(empty, 0.0)).sum(-1)


def reward_change(p: torch.Tensor, q: torch.Tensor, reward: torch.Tensor, divergence: DivergenceName) -> torch.Tensor:
    """Return how the mean reward changes to first order in a natural-gradient step on a divergence: Cov_p(reward, h(w))
    with w = q / p (arXiv 2606.05152; the derivation is ours).

    h = w - 1 for `forward`, whose change is E_q reward - E_p reward and so is positive whenever the expert is better;
    ln w for `reverse` and ln((1 + w) / 2) / 2 for `js`, which may be negative then.

    Args:
        p, q, reward: `[..., actions]`.
    """
    w = q / p
    h = {"forward": w - 1, "reverse": w.log(), "js": 0.5 * ((1 + w) / 2).log()}[divergence]
    mean_r, mean_h = (p * reward).sum(-1, keepdim=True), (p * h).sum(-1, keepdim=True)
    return (p * (reward - mean_r) * (h - mean_h)).sum(-1)
