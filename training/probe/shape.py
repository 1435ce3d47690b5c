"""Test whether a model's entropy has the shape of a U over difficulty: high on easy and hard questions, low between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from waver.training.probe.labels import SURE, Answers

Z = 1.96
"""Standard errors that a difference has to exceed (95 %)."""


@dataclass(frozen=True)
class Group:
    """Questions of one difficulty: how many, and means over them. `error`: the standard error of `entropy` (nats), NaN
    for a single question."""

    level: float
    count: int
    right: float
    tokens: float
    entropy: float
    error: float


def groups(levels: Sequence[float], answers: Sequence[Answers]) -> list[Group]:
    """Return a group for each level, in rising order."""
    found = []
    for level in sorted(set(levels)):
        own = [each for at, each in zip(levels, answers, strict=True) if at == level]
        entropies = [each.entropy for each in own]
        error = stdev(entropies) / math.sqrt(len(own)) if len(own) > 1 else math.nan
        right, tokens = fmean(each.right for each in own), fmean(each.tokens for each in own)
        found.append(Group(level, len(own), right, tokens, fmean(entropies), error))
    return found


def u_shape(found: Sequence[Group]) -> tuple[bool, str]:
    """Tell whether mean entropy is lowest inside, and higher at both ends by more than chance; and a sentence about
    it."""
    first, last, low = found[0], found[-1], min(found, key=lambda group: group.entropy)

    def above(end: Group) -> bool:
        return end.entropy - low.entropy > Z * math.hypot(end.error, low.error)

    ends = [end for end in (first, last) if end is not low and above(end)]
    said = f"{first.entropy:.4f} nats at {first.level:g}, lowest with {low.entropy:.4f} at {low.level:g}, " + (
        f"{last.entropy:.4f} at {last.level:g}"
    )
    if len(ends) == 2:
        fall = 1 - low.entropy / first.entropy
        return True, f"The U-shape appears: {said} (a fall by {100 * fall:.1f} %, then a rise)."
    if not ends:
        return False, f"The U-shape does not appear: no end lies clearly above the lowest point ({said})."
    trend = "falls" if ends[0] is first else "rises"
    why = ""
    if ends[0] is first and last.right >= SURE:
        why = f" There is no right arm: even the hardest are answered rightly in {100 * last.right:.1f} %."
    return False, f"The U-shape does not appear: mean entropy {trend} with difficulty ({said}).{why}"
