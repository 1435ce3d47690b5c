"""Read the entropy of a token, in full or over its most likely candidates, and score steps by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from waver.engines.base import Step as Drawn

WINDOWS = (10, 20, 30, 40, 50)


@dataclass(frozen=True)
class Reading:
    """The entropy that counts, in nats: of the whole distribution, or with `top` the sum over so many most likely
    tokens without renormalising, as the released code of arXiv 2509.23285 has it with 50."""

    top: int = 0

    def of(self, drawn: Drawn) -> float:
        """Return the entropy of a position."""
        if not self.top:
            return drawn.entropy
        return top_entropy([math.exp(logprob) for _, logprob in drawn.top_logprobs], self.top)


FULL = Reading()


def top_entropy(probabilities: Sequence[float], top: int, renormalised: bool = False) -> float:
    """Compute -sum p ln p over the most likely tokens; at most the entropy, unless they are renormalised."""
    kept = sorted(probabilities, reverse=True)[:top]
    whole = sum(kept) if renormalised else 1.0
    return -sum(p / whole * math.log(p / whole) for p in kept if p > 0)


@dataclass(frozen=True)
class Score:
    """The largest mean entropy of the first tokens of a step, over several windows; `window` is the smallest that has
    it, `peak` the place of the largest entropy in it."""

    value: float
    window: int
    peak: int


def score(entropies: Sequence[float], windows: Sequence[int] = WINDOWS) -> Score:
    """Score a step by its tokens' entropies; a window beyond its end is the whole step."""
    means = [(sum(entropies[:n]) / min(n, len(entropies)), n) for n in sorted(windows)]
    value, window = max(means, key=lambda each: (each[0], -each[1]))
    head = entropies[:window]
    return Score(value, window, max(range(len(head)), key=lambda place: (head[place], -place)))


def most_uncertain(scores: Sequence[Score], count: int) -> list[int]:
    """Return the places of the steps of largest score, largest first; of equal ones the earlier."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place].value, place))[:count]
