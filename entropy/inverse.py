"""Inverse entropy: how surely an input can be told from the output that it led to (Inv-Entropy, arXiv 2506.09684).

States 0..n are a question and its variants. Similarities among the questions and among their answers, in [0, 1] with 1
on the diagonal, become two row-stochastic matrices; their product is P(X | Y). Everything is in nats and float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]
DRAWS = 30
"""Bootstrap draws of the paper."""


def walk(similarity: ArrayLike) -> Matrix:
    """Divide each row of similarities `[states, states]` by its sum, the diagonal included."""
    a = np.asarray(similarity, np.float64)
    return np.asarray(a / a.sum(-1, keepdims=True), np.float64)


@dataclass(frozen=True)
class Coupled:
    """The two walks coupled; there may be several of either, `[..., states, states]`.

    `inverse` `[..., outputs, inputs]` is P(X = x_i | Y = y_j); rows sum to 1.
    """

    p_x: Matrix
    p_y: Matrix

    @property
    def inverse(self) -> Matrix:
        return np.asarray(self.p_y @ self.p_x, np.float64)

    @property
    def diagonal(self) -> Matrix:
        """Return P(x_i | y_i), which is not a distribution and is not made one."""
        return np.diagonal(self.inverse, axis1=-2, axis2=-1)

    @property
    def outputs(self) -> Matrix:
        """Return P(Y), from a uniform start."""
        return np.asarray(self.p_y.mean(-2), np.float64)

    @property
    def inputs(self) -> Matrix:
        """Return P(X) by total probability, as the released code has it; the paper's text drops one factor."""
        return np.asarray((self.outputs[..., None, :] @ self.inverse)[..., 0, :], np.float64)

    @property
    def forward(self) -> Matrix:
        """Return P(y_i | x_i) of each state."""
        return np.asarray(self.outputs * self.diagonal / self.inputs, np.float64)

    @property
    def inverse_entropy(self) -> Matrix:
        """Return Inv-Entropy."""
        return _entropy(self.diagonal)

    @property
    def forward_entropy(self) -> Matrix:
        """Return NI-Entropy, the same of the forward direction."""
        return _entropy(self.forward)

    @property
    def largest_forward(self) -> Matrix:
        """Return MAX-py-x."""
        return np.asarray(self.forward.max(-1), np.float64)

    @property
    def distance(self) -> Matrix:
        """Return WD-px-py: the 1-Wasserstein distance between the values of P(X) and of P(Y), as two samples."""
        return np.asarray(np.abs(np.sort(self.inputs, -1) - np.sort(self.outputs, -1)).mean(-1), np.float64)


def coupled(inputs: ArrayLike, outputs: ArrayLike) -> Coupled:
    """Couple the walks over the similarities of inputs and of outputs, `[states, states]` each."""
    return Coupled(walk(inputs), walk(outputs))


@dataclass(frozen=True)
class Inverse:
    """Means over bootstrap draws of Inv-Entropy, NI-Entropy, MAX-py-x and WD-px-py; NR-Inv-Entropy, of the first
    answers alone; and the usual floor of Inv-Entropy for as many states, `ln(n + 1)`."""

    entropy: float
    forward: float
    largest: float
    distance: float
    single: float
    floor: float


def inverse(
    inputs: ArrayLike, outputs: ArrayLike, replications: int, rng: np.random.Generator, draws: int = DRAWS
) -> Inverse:
    """Measure the uncertainty of the answers to a question and its variants.

    Args:
        inputs: `[states, states]` similarities of the questions.
        outputs: `[states * replications, states * replications]` similarities of all answers, state by state.
    """
    x, whole = walk(inputs), np.asarray(outputs, np.float64)
    states = len(x)
    first = np.arange(states) * replications
    places = first + rng.integers(replications, size=(draws, states))
    made = Coupled(x, walk(whole[places[:, :, None], places[:, None, :]]))
    once = Coupled(x, walk(whole[np.ix_(first, first)]))
    return Inverse(
        float(made.inverse_entropy.mean()),
        float(made.forward_entropy.mean()),
        float(made.largest_forward.mean()),
        float(made.distance.mean()),
        float(once.inverse_entropy),
        float(np.log(states)),
    )


def temperature_score(scores: Sequence[Sequence[float]]) -> float:
    """Compute TSU: the share of questions whose uncertainty rises strictly with every step of the temperature.

    Args:
        scores: for each question its uncertainty at rising temperatures.
    """
    table = np.asarray(scores, np.float64)
    return float((np.diff(table, axis=1) > 0).all(1).mean())


def _entropy(d: Matrix) -> Matrix:
    return np.asarray(-(d * np.log(np.where(d > 0, d, 1.0))).sum(-1), np.float64)
