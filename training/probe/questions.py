"""Read questions to train a probe on from a file, or draw sums of the bundled world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from waver.training.pair.world import steps_of
from waver.training.tasks.rewards import SCORERS, Reward, arithmetic, custom, read_rows


def from_file(file: Path, scorer: str) -> tuple[list[dict[str, Any]], Reward]:
    """Return the rows of a JSONL file, and what judges their answers: one of SCORERS, or `module:function`.

    Raises:
        ValueError: a line is not as it should be, or there is no such scorer. OSError: the file cannot be read.
    """
    if scorer not in SCORERS and ":" not in scorer:
        raise ValueError(f"there is no scorer {scorer!r}; there are {', '.join(SCORERS)}, and module:function")
    reward = SCORERS[scorer] if scorer in SCORERS else custom(scorer)
    rows = read_rows(file, reward)
    if not rows:
        raise ValueError(f"{file} holds no questions")
    return rows, reward


def sums(n: int, seed: int, steps: tuple[int, int]) -> tuple[list[dict[str, Any]], Reward]:
    """Return chains of sums that `waver.training.pair.world.draw` gives for no seed; a row's `level` is its number of
    steps.

    Raises:
        ValueError: `steps` is no pair of a shortest and a longest chain.
    """
    task = arithmetic(n, 0, seed, steps)
    return [row | {"level": steps_of(row["question"])} for row in task.train], task.reward
