"""The uncertainty of a position relative to others, from -1 to 1: the signal of HAPO (arXiv 2509.16591, eq. 5 and 6).

With l = log max(H, 1e-8) of an entropy H in nats, and h = (l - q) / sigma:

    h~ = h / max h where h > 0, else h / |min h|

q is a high quantile of l over many positions, so about the upper fifth of them is above 0. The largest and the smallest
h that were seen are 1 and -1, and whatever lies beyond them is, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FLOOR = 1e-8
"""Floor of an entropy, in nats."""

Number = float | torch.Tensor


def uncertainty(entropy: torch.Tensor, q: Number, sigma: Number, s_pos: Number, s_neg: Number) -> torch.Tensor:
    """Compute h~ of entropies (nats) of any shape; the statistics are those of `Statistics`, or tensors that
    broadcast."""
    h = (entropy.clamp(min=FLOOR).log() - q) / sigma
    return torch.where(h > 0, h * s_pos, h * s_neg).clamp(-1, 1)


@dataclass(frozen=True)
class Statistics:
    """The statistics of other positions that the signal is relative to."""

    q: float
    sigma: float
    """sqrt(mean((l - q)^2)): around the quantile, not the mean."""
    s_pos: float
    """1 / max h."""
    s_neg: float
    """1 / |min h|."""

    @classmethod
    def of(cls, entropy: torch.Tensor, pivot: float = 0.8, winsorise: float = 0.0) -> Statistics:
        """Compute the statistics of the entropies (nats) of valid tokens, flat and at least one.

        Args:
            pivot: the quantile, by nearest rank. winsorise: share of the log entropies to cut at both ends.
        """
        log = entropy.double().clamp(min=FLOOR).log().sort().values
        last = len(log) - 1
        log = log.clamp(log[round(winsorise * last)], log[round((1 - winsorise) * last)])
        q = float(log[round(pivot * last)])
        sigma = float((log - q).square().mean().sqrt().clamp(min=FLOOR))
        top, bottom = (float(log[-1]) - q) / sigma, (float(log[0]) - q) / sigma
        return cls(q, sigma, 1 / max(top, FLOOR), 1 / max(-bottom, FLOOR))

    def signal(self, entropy: torch.Tensor, legacy_abs: bool = False) -> torch.Tensor:
        """Compute h~ of entropies of any shape; `legacy_abs`: without its sign, as the paper's released code has it."""
        signal = uncertainty(entropy, self.q, self.sigma, self.s_pos, self.s_neg)
        return signal.abs() if legacy_abs else signal
