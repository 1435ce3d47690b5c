"""Compute S and H from a scaling law, without training (arXiv 2601.03220, section 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from waver.training.selection.epiplexity.lengths import LN2


@dataclass(frozen=True)
class ScalingLaw:
    """Loss in nats per token, L(N, D) = E + (N0 / N)^alpha + (D0 / D)^beta, of N parameters after D tokens."""

    alpha: float
    beta: float
    n0: float
    d0: float
    floor: float

    @classmethod
    def from_fit(cls, gamma: float, delta: float, n0: float, c0: float, floor: float) -> ScalingLaw:
        """Convert a fit over compute: alpha = gamma / delta, beta = gamma / (1 - delta)."""
        alpha, beta = gamma / delta, gamma / (1 - delta)
        return cls(alpha, beta, n0, c0 / 6 * n0 ** (alpha / beta) * (beta / alpha) ** (-1 / beta), floor)

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss in nats per token."""
        return float(self.floor + (self.n0 / parameters) ** self.alpha + (self.d0 / tokens) ** self.beta)

    def model_bits(self, tokens: float) -> float:
        """Return S in bits after so many tokens: beta / (1 - beta) D0^beta D^(1 - beta) nats."""
        return float(self.beta / (1 - self.beta) * self.d0**self.beta * tokens ** (1 - self.beta) / LN2)

    def at(self, budget: float, described: float) -> Optimum:
        """Find the parameters and tokens whose two-part code of `described` tokens is shortest within so many FLOPs.

        Raises:
            ValueError: the budget or the number of tokens is not positive.
        """
        if budget <= 0 or described <= 1:
            raise ValueError("a scaling law needs a positive budget and more than one token")
        tokens = self._tokens(budget, described)
        parameters = budget / (2 * (3 * tokens + described))
        loss = self.loss(parameters, tokens)
        return Optimum(tokens, parameters, loss, self.model_bits(tokens), described * loss / LN2)

    def _tokens(self, budget: float, described: float) -> float:
        """Solve for the number of training tokens by bisection of its logarithm."""

        def gain(tokens: float) -> float:
            left = self.beta * self.d0**self.beta * (described - tokens) * tokens ** (-self.beta - 1)
            right = 3 * self.alpha * described * (2 * self.n0 / budget) ** self.alpha
            return float(left - right * (3 * tokens + described) ** (self.alpha - 1))

        low, high = 0.0, math.log(0.999999 * described)
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if gain(math.exp(middle)) > 0 else (low, middle)
        return math.exp((low + high) / 2)


@dataclass(frozen=True)
class Optimum:
    """The best division of a budget: training tokens, parameters, loss (nats per token), S and H (bits)."""

    tokens: float
    parameters: float
    loss: float
    s: float
    h: float
