"""Decide which rows of a generation are right: by which reward function, and from how much reward on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from waver.training.rl.composition import RecipeError
from waver.training.rl.recipe import Recipe
from waver.training.rl.unknown import Unknown

Judge = Callable[[torch.Tensor], torch.Tensor]
"""`[B, reward functions]` scores, nan where a function has nothing to say -> `[B]` bool."""


@dataclass(frozen=True)
class Correct:
    """A row is right where a reward function gives it at least so much; where that function says nothing, it is not.

    Args:
        at_least: the reward of a right answer, such as 1 where partial answers earn less.
        reward: the name of the reward function; it may be left out where there is only one.
    """

    at_least: float
    reward: str | None = None


def make_judge(correct: Correct | float | Judge | None, names: Sequence[str], recipe: Recipe) -> Judge:
    """Return the function that tells which rows are right from their scores.

    Without `correct` it says `Unknown`: a threshold cannot be guessed from a reward function.

    Args:
        correct: the threshold of the only reward function, a `Correct`, or the function itself.
        names: of the reward functions, in the order of the scores.

    Raises:
        RecipeError: the recipe reads which rows are right and nothing says so, or it is not said by which function.
    """
    if correct is None:
        reason = (
            "that is not known: give the trainer `correct`, the least reward of a right answer, or "
            f"Correct(at_least, reward) with the name of one of its reward functions ({', '.join(names)})"
        )
        if readers := recipe.readers("correct"):
            raise RecipeError(f"{' and '.join(readers)} must know which rows are right, and {reason}")
        unknown: Any = Unknown.because(f"a method reads which rows are right, and {reason}")
        return lambda scores: unknown
    if callable(correct):
        return correct
    rule = correct if isinstance(correct, Correct) else Correct(float(correct))
    if rule.reward is None and len(names) > 1:
        raise RecipeError(
            f"there are {len(names)} reward functions ({', '.join(names)}): say which of them tells right from wrong, "
            f"by correct=Correct({rule.at_least}, reward=...)"
        )
    if rule.reward is not None and names.count(rule.reward) != 1:
        raise RecipeError(f"correct names the reward function {rule.reward!r}; there are {', '.join(names)}")
    place = 0 if rule.reward is None else names.index(rule.reward)
    return lambda scores: scores[:, place] >= rule.at_least
