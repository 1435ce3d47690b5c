"""Bound the entropy of a whole distribution by its k largest log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TOLERANCE = 1e-3
"""Probability mass by which reported log-probabilities may miss: they are rounded, and computed in half precision."""


@torch.no_grad()
def entropy_bounds(
    top_logprobs: torch.Tensor | Sequence[float], vocab_size: int, ranked: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the tightest lower and upper bound on the Shannon entropy (nats) that the top k log-probabilities allow.

    The other `vocab_size - k` tokens share the mass r = 1 - Σ p, each at most as likely as the least likely of the
    k, m = min p. The entropy is least when they are packed (⌊r / m⌋ tokens at m and one with the remainder), and
    greatest when they are even (r / (vocab_size - k) each). With all tokens given, both are the entropy itself.

    Args:
        top_logprobs: `[..., k]` in nats, in any order; a sequence of floats is one row, taken in float64.
        vocab_size: number of tokens that the model can produce.
        ranked: these are the k largest. If they are just any k, another token may be likelier than they are (m = 1).

    Returns:
        `(lower, upper)`, each `[...]`, float64 for float64 input, else float32. They carry no gradient.

    Raises:
        ValueError: there are no log-probabilities or more than `vocab_size`, or they cannot be the k largest of a
            distribution over `vocab_size` tokens (beyond a tolerance of 1e-3 in mass).
    """
    logprobs = torch.as_tensor(top_logprobs, dtype=None if isinstance(top_logprobs, torch.Tensor) else torch.float64)
    logprobs = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    k = logprobs.shape[-1] if logprobs.ndim else 0
    if not 1 <= k <= vocab_size:
        raise ValueError(f"between 1 and {vocab_size} (the vocabulary) log-probabilities are needed, got {k}")
    others = vocab_size - k

    probs = logprobs.exp()
    known = torch.special.entr(probs).sum(-1)
    smallest = probs.amin(-1) if ranked else torch.ones_like(known)
    rest = 1.0 - probs.sum(-1)
    room = others * smallest
    if not (rest >= -TOLERANCE).all():
        raise ValueError(
            "the log-probabilities are not those of a distribution: they are NaN, or their probabilities exceed 1"
        )
    if not (rest <= room + TOLERANCE).all():
        raise ValueError(
            f"the log-probabilities are not the {k} largest of {vocab_size} tokens: "
            f"the {others} others would have to be likelier than the least likely one given"
        )
    rest = torch.minimum(rest.clamp(min=0.0), room)

    full = torch.where(smallest > 0, rest / smallest, 0.0).floor().clamp(max=others)
    remainder = (rest - full * smallest).clamp(min=0.0)
    lower = known + full * torch.special.entr(smallest) + torch.special.entr(remainder)
    upper = known + others * torch.special.entr(rest / max(others, 1))
    return torch.minimum(lower, upper), upper


def entropy_estimate(top_logprobs: torch.Tensor | Sequence[float], vocab_size: int) -> torch.Tensor:
    """Return the midpoint of `entropy_bounds` (nats): `[...]`, off by at most half the gap between the two."""
    lower, upper = entropy_bounds(top_logprobs, vocab_size)
    return (lower + upper) / 2
