"""Rules that choose one of several finished runs: a judge, a plurality vote, the least entropy, chance, and the truth.

`judge`, early stopping and the other rules are compared in Entropy Judger (arXiv 2602.04234); the vote is
self-consistency (arXiv 2203.11171).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Rule = Literal["auto", "judge", "vote", "min_entropy", "random", "oracle"]


@dataclass(frozen=True)
class Candidate:
    """A finished run as rules see it.

    `key` is its answer in a comparable form, None where there is none; `entropy` the mean over its calls of their mean
    entropy (nats); `probability` a judge's; `right` what one that knows the answer says.
    """

    key: str | None
    entropy: float
    probability: float | None = None
    right: bool = False
    features: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Choice:
    """The chosen place, and the rule that decided it."""

    place: int
    by: Rule


def plurality(keys: Sequence[str | None]) -> list[list[int]]:
    """Return the places of the answers that most runs gave, a list for each of the answers that are level, in the order
    in which they were seen. None does not vote; empty where nobody votes."""
    buckets: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            buckets.setdefault(key, []).append(place)
    most = max(map(len, buckets.values()), default=0)
    return [places for places in buckets.values() if len(places) == most]


def choose(candidates: Sequence[Candidate], rule: Rule, seed: int = 0) -> Choice:
    """Choose one of the candidates; the first of those that are level.

    `auto` takes the plurality's answer, and where several are level, or none can be compared, what a judge (or, without
    one, the least entropy) prefers among them.

    Raises:
        ValueError: there are no candidates, or `judge` has no probabilities to go by.
    """
    if not candidates:
        raise ValueError("there is nothing to choose from")
    everyone = list(range(len(candidates)))
    if rule == "random":
        return Choice(random.Random(f"select:{seed}").choice(everyone), rule)
    if rule == "vote":
        level = plurality([each.key for each in candidates])
        return Choice(level[0][0] if level else 0, rule)
    if rule == "auto":
        level = plurality([each.key for each in candidates])
        if len(level) == 1:
            return Choice(level[0][0], "vote")
        everyone = sorted(place for places in level for place in places) or everyone
        rule = "judge" if all(each.probability is not None for each in candidates) else "min_entropy"
    return Choice(_best(candidates, everyone, rule), rule)


def _best(candidates: Sequence[Candidate], places: Sequence[int], rule: Rule) -> int:
    def cost(place: int) -> float:
        own = candidates[place]
        if rule == "min_entropy":
            return own.entropy
        if rule == "oracle":
            return float(not own.right)
        if own.probability is None:
            raise ValueError("there are no probabilities to judge by")
        return -own.probability

    return min(places, key=cost)


def early_stop(probabilities: Sequence[float], threshold: float) -> int:
    """Return the place of the first run whose probability reaches the threshold; of the last where none does."""
    return next((place for place, p in enumerate(probabilities) if p >= threshold), len(probabilities) - 1)
