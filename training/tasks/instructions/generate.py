"""Draw instructions: a request, and some constraints that do not contradict each other."""

from __future__ import annotations

import random
from typing import Any

from waver.training.tasks.instructions.base import Constraint
from waver.training.tasks.instructions.families import FAMILIES

FORMS = (
    "Explain how {} works to a child.",
    "Write a short advertisement for {}.",
    "Tell a story in which {} matters.",
    "Write a letter to a friend about {}.",
    "Compare {} with what people used before.",
    "Name the advantages and drawbacks of {}.",
    "Summarise what everyone should know about {}.",
    "Write a plan for a day that has to do with {}.",
)
SUBJECTS = (
    *("a bicycle", "a bakery", "a lighthouse", "the postal service", "a telescope", "a public library", "a compass"),
    *("a vegetable garden", "a night train", "a weather station", "a sewing machine", "a windmill", "a harbour"),
    *("a school orchestra", "a mountain hut", "a fountain pen", "a flea market", "a fire brigade", "a beehive"),
    *("a rain barrel", "a chess club", "a ferry", "a clock tower", "a toolbox"),
)


def draw_constraints(rng: random.Random, request: str, count: int) -> list[Constraint]:
    """Draw constraints of different kinds that decide different aspects of an answer; fewer where none is left."""
    found: list[Constraint] = []
    decided: set[str] = set()
    for kind in rng.sample(list(FAMILIES), len(FAMILIES)):
        family = FAMILIES[kind]
        if len(found) < count and not decided & family.rules:
            found.append(family.draw(rng, request))
            decided |= family.rules
    return found


def instructions(rows: int, seed: int, rules: tuple[int, int], think: bool = False) -> list[dict[str, Any]]:
    """Return rows with `question`, `constraints` and `think`.

    Args:
        rules: the fewest and the most constraints of a question. think: whether an answer must have a thought, closed
            by `</think>`, to earn anything.
    """
    rng = random.Random(f"instructions:{seed}")
    found = []
    for _ in range(rows):
        request = rng.choice(FORMS).format(rng.choice(SUBJECTS))
        constraints = draw_constraints(rng, request, rng.randint(*rules))
        told = "\n".join(f"- {each.words()}" for each in constraints)
        question = f"{request}\n\nFollow all of these rules:\n{told}"
        found.append({"question": question, "constraints": [c.model_dump() for c in constraints], "think": think})
    return found
