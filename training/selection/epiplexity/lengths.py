"""Compute code lengths in bits from losses and divergences in nats (arXiv 2601.03220, eq. 8 and 9).

S is the length of the model, H the length of the data under it; S + H is the two-part code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

LN2 = math.log(2.0)


def prequential(before: Sequence[float], after: Sequence[float], tokens: Sequence[int]) -> float:
    """Return S in bits: each batch's loss before its update less its loss under the final model (eq. 8).

    Args:
        before: mean nats per token of each batch, `[steps]`. after: the same batches under the final model.
        tokens: coded tokens of each batch.
    """
    return math.fsum((b - a) * n for b, a, n in zip(before, after, tokens, strict=True)) / LN2


def prequential_shortcut(before: Sequence[float], tokens: Sequence[int], last: int) -> float:
    """Return S in bits with the mean of the `last` training losses in place of re-scoring every batch.

    For i.i.d. data and one epoch only, and unreliable even there: the error of that mean counts once for every token.
    """
    final = float(np.mean(before[-last:]))
    return prequential(before, [final] * len(before), tokens)


def area(losses: Sequence[float], tokens: Sequence[float]) -> float:
    """Return the area in bits between a loss curve and its last value, by the trapezoid rule.

    Args:
        losses: mean nats per token at each logged point. tokens: those seen by then, rising, as many.
    """
    above = np.asarray(losses, np.float64) - losses[-1]
    return float(np.trapezoid(above, np.asarray(tokens, np.float64))) / LN2


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher || student) in nats at each position, from logits `[..., vocab]`."""
    p, q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def message_bits(kl: float) -> float:
    """Return the bits of one message of `kl` nats with its overhead: KL + log2(1 + KL) + 4 (eq. 9)."""
    bits = kl / LN2
    return bits + math.log2(1.0 + bits) + 4.0


def requential(kls: Sequence[float]) -> float:
    """Return S in bits of messages with these divergences in nats, without overhead."""
    return math.fsum(kls) / LN2


def noise(loss: float, tokens: int) -> float:
    """Return H in bits: so many tokens at a mean loss in nats."""
    return tokens * loss / LN2


def compute(parameters: int, trained: int, described: int) -> float:
    """Return the FLOPs of training on `trained` tokens and evaluating `described`: 6 N D + 2 N D_T."""
    return 6.0 * parameters * trained + 2.0 * parameters * described
