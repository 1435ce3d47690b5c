"""Search for the levels of a model's units by level switches under an exact budget (EvoPress, arXiv 2410.14649).

One parent; each generation mutates it many times and selects among the offspring in rounds, cheap ones first. The
parent joins the last round, so that every generation scores it anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

State = tuple[int, ...]
"""The level of each unit; a higher level is compressed more."""
TRIES = 50
"""Mutations that are tried for each offspring before a generation goes on with fewer."""


class Space(Protocol):
    """The states of what may be compressed, and switches that keep the budget."""

    def switch(self, state: State, rng: random.Random) -> State | None:
        """Compress one unit more and another less; None where nothing can be switched."""
        ...


@dataclass(frozen=True)
class Depth:
    """Attention and MLP sub-blocks of `blocks` blocks, of each of which `removed` are removed (level 1); the first
    `blocks` units are the attentions. `whole`: a block's two sub-blocks are removed together."""

    blocks: int
    removed: int
    whole: bool = False

    def switch(self, state: State, rng: random.Random) -> State | None:
        halves = (0,) if self.whole else (0, self.blocks)
        start = rng.choice(halves)
        own = range(start, start + self.blocks)
        kept, gone = [i for i in own if not state[i]], [i for i in own if state[i]]
        if not kept or not gone:
            return None
        out = list(state)
        for place, level in ((rng.choice(kept), 1), (rng.choice(gone), 0)):
            out[place] = level
            if self.whole:
                out[place + self.blocks] = level
        return tuple(out)

    def random(self, rng: random.Random) -> State:
        """Draw a state that keeps the budget."""
        own = [set(rng.sample(range(self.blocks), self.removed)) for _ in range(2)]
        attention, mlp = own[0], own[0] if self.whole else own[1]
        return tuple(int(i in attention) for i in range(self.blocks)) + tuple(int(i in mlp) for i in range(self.blocks))

    @property
    def generations(self) -> int:
        """Return the paper's number of generations, floor(k (n - k) / 1.5)."""
        return int(self.removed * (self.blocks - self.removed) / 1.5)


@dataclass(frozen=True)
class Levels:
    """Units with levels from `low` to `high` each; one step costs the same within a group."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    groups: tuple[int, ...]

    def switch(self, state: State, rng: random.Random) -> State | None:
        more = [i for i, level in enumerate(state) if level < self.high[i] and self._partners(state, i)]
        if not more:
            return None
        up = rng.choice(more)
        down = rng.choice(self._partners(state, up))
        out = list(state)
        out[up], out[down] = out[up] + 1, out[down] - 1
        return tuple(out)

    def _partners(self, state: State, up: int) -> list[int]:
        return [
            i for i, level in enumerate(state) if i != up and self.groups[i] == self.groups[up] and level > self.low[i]
        ]


def switches(rng: random.Random) -> int:
    """Draw the number of switches of a mutation: the smaller of two uniform numbers from 1 to 3."""
    return min(rng.randint(1, 3), rng.randint(1, 3))


def mutate(space: Space, state: State, rng: random.Random) -> State:
    """Apply a random number of switches."""
    for _ in range(switches(rng)):
        state = space.switch(state, rng) or state
    return state


@dataclass(frozen=True)
class Round:
    """A round of selection: how many survive, and on how many tokens they are scored."""

    survivors: int
    tokens: int


Score = Callable[[Sequence[State], int, random.Random], list[float]]
"""Score states, all on one random minibatch of so many tokens; lower is better."""


@dataclass
class Progress:
    """State of a search, as plain data to go on from."""

    parent: State
    generation: int = 0
    tokens: int = 0
    """Tokens that went through a compressed model so far."""
    rng: random.Random = field(default_factory=random.Random)
    best: float = float("nan")
    """The parent's score on the last minibatch."""


def offspring(space: Space, parent: State, count: int, rng: random.Random) -> list[State]:
    """Make up to `count` different mutations of a state, none equal to it."""
    found: dict[State, None] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        if (made := mutate(space, parent, rng)) != parent:
            found[made] = None
    return list(found)


def evolve(
    space: Space, progress: Progress, score: Score, rounds: Sequence[Round], generations: int, count: int
) -> Iterator[Progress]:
    """Run the remaining generations; yields the progress, which it changes in place, after each."""
    while progress.generation < generations:
        found = offspring(space, progress.parent, count, progress.rng)
        for number, each in enumerate(rounds):
            if number == len(rounds) - 1:
                found = [progress.parent, *found]
            scores = score(found, each.tokens, progress.rng)
            progress.tokens += len(found) * each.tokens
            order = sorted(range(len(found)), key=scores.__getitem__)[: each.survivors]
            found, progress.best = [found[i] for i in order], scores[order[0]]
        progress.parent = found[0]
        progress.generation += 1
        yield progress


def tokens_of_a_generation(rounds: Sequence[Round], count: int) -> tuple[int, int]:
    """Return how many tokens a generation takes, and how many evaluations."""
    tokens, evaluations, candidates = 0, 0, count
    for number, each in enumerate(rounds):
        candidates += number == len(rounds) - 1
        tokens, evaluations = tokens + candidates * each.tokens, evaluations + candidates
        candidates = each.survivors
    return tokens, evaluations


def sparsity_levels(sparsity: float, weights: int, step: int, most: int = 8) -> range:
    """Return the levels of a layer with so many weights: level j removes `sparsity * weights + j * step` of them."""
    return range(-min(int(sparsity * weights / step), most), min(int((1 - sparsity) * weights / step), most) + 1)


def first_bits(target: float, sizes: Sequence[int], low: int, high: int, rng: random.Random) -> tuple[int, ...]:
    """Give layers of these numbers of weights bit widths whose mean over the weights is at most `target`: all the next
    whole number of bits, then random layers one less."""
    whole = min(int(-(-target // 1)), high)
    bits = [whole] * len(sizes)
    budget = target * sum(sizes)
    while sum(b * n for b, n in zip(bits, sizes, strict=True)) > budget:
        place = rng.choice([i for i, b in enumerate(bits) if b > low])
        bits[place] -= 1
    return tuple(bits)
