"""Compute what a target accepts of a draft, and losses that raise it (arXiv 2606.12370).

`p` are the target's probabilities and `q` the draft's, at one temperature, over the whole vocabulary in the last
dimension; top-k approximations of the losses are unstable. A draft that is sampled from q is accepted with probability
`min(1, p/q)`, on average `1 - TV(p, q)`; a greedy one, argmax q, with `p(argmax q)`, at most the largest p.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOSSES = ("ce", "kl", "reverse_kl", "tv", "e2e_tv")


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Compute the share of sampled drafts that rejection sampling accepts, `[...]`: sum of min(p, q) = 1 - TV."""
    return torch.minimum(p, q).sum(-1)


def greedy_acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Compute the share of greedy drafts that are accepted, `[...]`: p(argmax q)."""
    return p.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Compute what is drawn from after a sampled draft was rejected: max(0, p - q), normalised. It is p where the two
    are equal and nothing is rejected."""
    left = (p - q).clamp(min=0)
    mass = left.sum(-1, keepdim=True)
    return torch.where(mass > 0, left / mass.clamp(min=torch.finfo(p.dtype).tiny), p)


def greedy_residual(p: Tensor, q: Tensor) -> Tensor:
    """Compute what is drawn from after a greedy draft was rejected: p without it, normalised."""
    left = p.scatter(-1, q.argmax(-1, keepdim=True), 0.0)
    return left / left.sum(-1, keepdim=True)


def accepted_length(alpha: Tensor) -> Tensor:
    """Compute the mean number of drafts that are accepted until the first is not, `[...]`, from the acceptance of each,
    `[..., gamma]`: sum over j of the product of the first j. The token drawn after them is not counted."""
    return alpha.cumprod(-1).sum(-1)


def e2e_tv(alpha: Tensor) -> Tensor:
    """Compute the end-to-end loss, `[...]`: 1 - accepted length / gamma. An early position counts more, and a late one
    only as far as those before it are accepted."""
    return 1 - accepted_length(alpha) / alpha.shape[-1]


def conditional(rates: Tensor) -> Tensor:
    """Turn unconditional rates of acceptance at each place, `[..., gamma]`, into those given that all before were
    accepted."""
    return rates / torch.cat([torch.ones_like(rates[..., :1]), rates[..., :-1]], -1)


def token_loss(kind: str, logp: Tensor, logq: Tensor, tokens: Tensor) -> Tensor:
    """Compute a loss at every position, `[...]` in nats (`tv`: a probability).

    Args:
        logp: log-probabilities of the target, without gradient. logq: of the draft. tokens: those that stand there.

    Raises:
        ValueError: there is no such loss of one position.
    """
    p, q = logp.exp(), logq.exp()
    match kind:
        case "ce":
            return -logq.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        case "kl":
            return (p * (logp - logq)).sum(-1)
        case "reverse_kl":
            return (q * (logq - logp)).sum(-1)
        case "tv":
            return 1 - acceptance(p, q)
    raise ValueError(f"there is no loss {kind!r} of one position")


def chains(values: Tensor, mask: Tensor, gamma: int) -> tuple[Tensor, Tensor]:
    """Cut rows `[N, T]` into all runs of `gamma` positions, `[N, T - gamma + 1, gamma]`, and say which of them lie
    wholly within the mask, `[N, T - gamma + 1]` bool."""
    return values.unfold(1, gamma, 1), mask.bool().unfold(1, gamma, 1).all(-1)


def draft_loss(kind: str, logp: Tensor, logq: Tensor, tokens: Tensor, mask: Tensor, gamma: int) -> Tensor:
    """Compute the mean loss of a batch: over the positions of the mask, or for `e2e_tv` over the runs of `gamma`
    positions that lie within it.

    Args:
        logp, logq: `[N, T, vocab]`. tokens, mask: `[N, T]`.
    """
    if kind != "e2e_tv":
        found = token_loss(kind, logp, logq, tokens)
        return (found * mask).sum() / mask.sum().clamp(min=1)
    gamma = min(gamma, mask.shape[1])
    alpha, whole = chains(acceptance(logp.exp(), logq.exp()), mask, gamma)
    return (e2e_tv(alpha) * whole).sum() / whole.sum().clamp(min=1)


def worthwhile(accepted: float, gamma: int, cost: float, overhead: float = 0.0) -> bool:
    """Tell whether speculation pays: tokens a round against its cost in passes of the target (our rule).

    Args:
        accepted: drafts accepted a round. cost: of one pass of the draft, in passes of the target.
    """
    return 1 + accepted > 1 + gamma * cost + overhead
