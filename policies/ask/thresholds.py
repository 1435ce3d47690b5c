"""Thresholds of conformal sets for each length of a history, from random histories (C-IP, arXiv 2507.03279)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from waver.engines.fingerprint import Fingerprint
from waver.entropy.conformal import threshold
from waver.policies.ask.history import Asked
from waver.policies.ask.table import Array, by_table
from waver.policies.ask.task import AskTask

CALIBRATION = 100
"""Histories for each length."""


class Thresholds(BaseModel):
    """Probabilities of the true hypothesis after random histories of k = 1, 2, … questions, `[lengths][histories]`,
    from which the threshold for any alpha follows; and the task and model that they belong to."""

    model_config = ConfigDict(extra="forbid")

    task: str
    """The task's digest."""
    model: str
    fingerprint: Fingerprint
    true: list[list[float]]

    def misfit(self, task: AskTask, model: Fingerprint) -> str | None:
        """Explain why they do not fit; None where they do."""
        if self.task != task.digest:
            return "they were calibrated for another task"
        unlike = self.fingerprint.unlike(model)
        return None if unlike is None else f"they were calibrated on {self.model}, and this is {unlike}"

    @classmethod
    def load(cls, file: Path) -> Thresholds:
        """Read a file, or `thresholds.json` in a folder.

        Raises:
            ValueError: it is not there, or damaged.
        """
        path = file / "thresholds.json" if file.is_dir() else file
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ValueError(f"the thresholds in {path} cannot be read: {said}") from error


def taus(true: Sequence[Sequence[float]], alpha: float) -> list[float]:
    """Return tau for each length from 1 on."""
    return [threshold(own, alpha) for own in true]


def random_history(task: AskTask, truth: int, length: int, rng: random.Random) -> tuple[Asked, ...]:
    """Draw different questions, and answer them for a hypothesis."""
    chosen = rng.sample(range(len(task.questions)), min(length, len(task.questions)))
    return tuple(Asked(question, task.answer(truth, question)) for question in chosen)


def from_table(task: AskTask, error: float, length: int, seed: int = 0, count: int = CALIBRATION) -> list[list[float]]:
    """Calibrate the table's predictor on simulated users, whose answers are wrong as often as it expects."""
    rng = random.Random(f"thresholds:{seed}")

    def noisy(asked: Sequence[Asked]) -> list[Asked]:
        return [Asked(each.question, bool(each.answer) != (rng.random() < error)) for each in asked]

    def one(k: int) -> float:
        truth = rng.randrange(len(task.hypotheses))
        return float(by_table(task, noisy(random_history(task, truth, k, rng)), error)[truth])

    return [[one(k) for _ in range(count)] for k in range(1, length + 1)]


def coverage(
    tau: Sequence[float], predict: Callable[[Sequence[Asked]], Array], task: AskTask, count: int, rng: random.Random
) -> float:
    """Return the share of fresh random histories whose set holds the truth."""
    held = []
    for k, own in enumerate(tau, 1):
        for _ in range(count):
            truth = rng.randrange(len(task.hypotheses))
            held.append(float(predict(random_history(task, truth, k, rng))[truth]) >= own)
    return float(np.mean(held))
