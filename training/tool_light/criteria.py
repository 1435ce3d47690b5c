"""Choose the pair of a question from its chains (the criteria of arXiv 2509.23285; the pair code is not released).

What the paper leaves open and is decided here: a ratio of exactly one half is hard, several eligible negatives are
settled by most calls and then length, a question without an eligible negative gives no pair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Bucket = Literal["easy", "hard"]
Kind = Literal["guided", "vanilla"]


@dataclass(frozen=True)
class Candidate:
    """A chain as the criteria see it: whether its answer is right, calls of tools, mean entropy in nats, tokens."""

    right: bool
    calls: int
    entropy: float
    length: int


@dataclass(frozen=True)
class Choice:
    """The places of the chosen and the rejected chain; `chosen` is None where the reference chain stands in."""

    chosen: int | None
    rejected: int
    bucket: Bucket


def first_round(chains: Sequence[Candidate], kind: Kind, reference: Candidate | None = None) -> Choice | None:
    """Choose by the criteria before self-evolution: right with few calls against wrong with more.

    Args:
        reference: the chain of the training data, which is chosen where no drawn one is right (guided sampling only).
    """
    rights = [place for place, each in enumerate(chains) if each.right]
    ratio = len(rights) / len(chains)
    if kind == "vanilla":
        if 0.4 < ratio < 0.7 or not rights:
            return None
        chosen = min(rights, key=lambda place: (chains[place].length, place))
        best = chains[chosen]
        wrong = [i for i in _wrong(chains) if chains[i].length > best.length or chains[i].calls > best.calls]
        return _chosen(chains, chosen, wrong, "easy" if ratio >= 0.7 else "hard")
    bucket: Bucket = "easy" if ratio > 0.5 else "hard"
    if not rights:
        if reference is None:
            return None
        return _chosen(chains, None, [i for i in _wrong(chains) if chains[i].calls > reference.calls], bucket)
    chosen = _frugal(chains, rights)
    return _chosen(chains, chosen, [i for i in _wrong(chains) if chains[i].calls > chains[chosen].calls], bucket)


def is_hard(chains: Sequence[Candidate]) -> bool:
    """Tell whether fewer than half as many chains are right as are wrong."""
    rights = sum(each.right for each in chains)
    return rights < (len(chains) - rights) / 2


def evolved_round(chains: Sequence[Candidate], hard: bool | None = None) -> Choice | None:
    """Choose by the criteria of self-evolution: on hard questions long exploration is preferred."""
    rights, wrong = [i for i, each in enumerate(chains) if each.right], _wrong(chains)
    if not rights or not wrong:
        return None
    if is_hard(chains) if hard is None else hard:
        longest = max(rights, key=lambda place: (chains[place].length, -place))
        shortest = min(wrong, key=lambda place: (chains[place].length, place))
        return Choice(longest, shortest, "hard")
    return _chosen(chains, _frugal(chains, rights), wrong, "easy")


def _wrong(chains: Sequence[Candidate]) -> list[int]:
    return [place for place, each in enumerate(chains) if not each.right]


def _frugal(chains: Sequence[Candidate], places: Sequence[int]) -> int:
    return min(places, key=lambda place: (chains[place].calls, chains[place].entropy, place))


def _chosen(chains: Sequence[Candidate], chosen: int | None, wrong: Sequence[int], bucket: Bucket) -> Choice | None:
    if not wrong:
        return None
    return Choice(chosen, max(wrong, key=lambda i: (chains[i].calls, chains[i].length, -i)), bucket)


Item = TypeVar("Item")


def balanced(hard: Sequence[Item], easy: Sequence[Item], seed: int, ratio: float = 2.0) -> list[Item]:
    """Leave out pairs until there are `ratio` hard ones to an easy one; where one kind is missing, all stay."""
    if not hard or not easy:
        return [*hard, *easy]
    rng = random.Random(f"tool_light:{seed}")
    most_easy = max(1, int(len(hard) / ratio))
    most_hard = max(1, int(len(easy) * ratio))
    return [*_some(hard, most_hard, rng), *_some(easy, most_easy, rng)]


def _some(items: Sequence[Item], most: int, rng: random.Random) -> list[Item]:
    if len(items) <= most:
        return list(items)
    return [items[place] for place in sorted(rng.sample(range(len(items)), most))]


def kinds(count: int, share: float, seed: int) -> list[Kind]:
    """Say for each question how it is sampled: a `share` of them plainly (the paper mixes 13 to 7)."""
    rng = random.Random(f"tool_light:kinds:{seed}")
    plain = set(rng.sample(range(count), round(count * share)))
    return ["vanilla" if place in plain else "guided" for place in range(count)]
