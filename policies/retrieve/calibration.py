"""Choose a gate's threshold for a budget of retrievals or a loss of accuracy, and tell when a gate pays.

L-RAG, arXiv 2601.06551; the paper says no more than that its thresholds are calibrated, so both rules are
reconstructions. Scores and thresholds are the gate's own (nats for entropies).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def budget(scores: Sequence[float], rate: float, above: bool = True) -> float:
    """Find the threshold at which a share `rate` of the scores fires: their (1 - rate)-quantile, interpolated along a
    line; the rate-quantile for a gate that fires at low scores (not `above`)."""
    return float(np.quantile(np.asarray(scores, float), 1 - rate if above else rate))


@dataclass(frozen=True)
class Point:
    """A threshold, and what came of it on the calibration questions: the share that retrieved, and that was right."""

    threshold: float
    rate: float
    accuracy: float


def curve(scores: Sequence[float], first: Sequence[bool], second: Sequence[bool], above: bool = True) -> list[Point]:
    """List every rate that a threshold can realise, from none to all. `first` and `second` say which answers of the two
    tiers were right. Between two scores the threshold lies in the middle."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i] if above else scores[i])
    right, n = sum(first), len(scores)
    ends = (1.0, -1.0) if above else (-1.0, 1.0)
    out = [Point(scores[order[0]] + ends[0], 0.0, right / n)]
    for taken, i in enumerate(order, 1):
        right += second[i] - first[i]
        following = scores[order[taken]] if taken < n else scores[i] + ends[1]
        if following != scores[i]:  # equal scores fire together
            out.append(Point((scores[i] + following) / 2, taken / n, right / n))
    return out


def within(points: Sequence[Point], loss: float) -> Point:
    """Find the smallest rate whose accuracy is at most `loss` below that of always retrieving, the last of the
    points."""
    return next(point for point in points if point.accuracy >= points[-1].accuracy - loss - 1e-12)


@dataclass(frozen=True)
class Latency:
    """Mean times of a request's parts: retrieval, an answer of the first tier, and one of the second.

    `draft` is what the first tier takes where the gate fires: the time until it has decided. None: it takes as long as
    a whole answer, as in the formula that the paper's figures bear out.
    """

    retrieval: float
    first: float
    second: float
    draft: float | None = None

    @property
    def always(self) -> float:
        return self.retrieval + self.second

    @property
    def _draft(self) -> float:
        return self.first if self.draft is None else self.draft

    def gated(self, rate: float) -> float:
        """Return the mean time with a gate that retrieves for a share `rate` of the requests: each has paid for its
        draft, and those that do not retrieve for the rest of the first answer."""
        return self._draft + (1 - rate) * (self.first - self._draft) + rate * self.always

    def break_even(self, rate: float) -> float:
        """Return the time of a retrieval from which the gate pays (0 or less: whatever it takes); infinite at rate
        1."""
        return self._draft / (1 - rate) + self.first - self._draft - self.second if rate < 1 else float("inf")
