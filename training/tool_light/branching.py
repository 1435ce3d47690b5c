"""Sample chains of a question: independent ones, or branches of one where its steps begin most uncertainly."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from waver.training.tool_light.chains import Chain, Step, World, finish
from waver.training.tool_light.entropies import WINDOWS, most_uncertain, score

BranchAt = Literal["step_start", "before_peak", "after_window"]
PLACES = get_args(BranchAt)


@dataclass(frozen=True)
class Branching:
    """`steps` of the main chain are branched `times` each. A branch keeps what stands before its step (`step_start`,
    the paper's formula), its tokens before the one of largest entropy too (`before_peak`), or its whole window
    (`after_window`, as the released code: the decision that should be drawn anew is kept where it lies inside)."""

    steps: int = 3
    times: int = 3
    at: BranchAt = "step_start"
    windows: tuple[int, ...] = WINDOWS

    @property
    def branches(self) -> int:
        return self.steps * self.times


def seed_of(seed: int, *parts: object) -> int:
    """Make the seed of one chain."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:4])


async def vanilla(world: World, prompt: Sequence[int], count: int, seed: int) -> list[Chain]:
    """Draw independent chains."""
    return list(await asyncio.gather(*(finish(world, prompt, (), seed_of(seed, i)) for i in range(count))))


async def guided(world: World, prompt: Sequence[int], how: Branching, seed: int) -> list[Chain]:
    """Draw a main chain and its branches (arXiv 2509.23285, entropy-guided sampling); the main chain comes first.

    A chain of fewer steps is branched more often at those it has.
    """
    main = await finish(world, prompt, (), seed_of(seed, "main"))
    places = branch_places(main, how)
    branches = (
        finish(world, prompt, main.steps[:place], seed_of(seed, "branch", number), _kept(main.steps[place], how))
        for number, place in enumerate(places)
    )
    return [main, *await asyncio.gather(*branches)]


def branch_places(main: Chain, how: Branching) -> list[int]:
    """Return the step that each branch draws anew."""
    scores = [score(step.entropies, how.windows) for step in main.steps]
    picked = most_uncertain(scores, how.steps)
    return [picked[number % len(picked)] for number in range(how.branches)]


def _kept(step: Step, how: Branching) -> Step | None:
    """Return the tokens of a step that its branches keep."""
    found = score(step.entropies, how.windows)
    count = {"step_start": 0, "before_peak": found.peak, "after_window": min(found.window, len(step.ids) - 1)}[how.at]
    return Step(step.ids[:count], step.entropies[:count]) if count else None
