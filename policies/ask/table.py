"""Predict a task's hypotheses from questions and answers by the task's own table (naive Bayes)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from waver.policies.ask.history import Asked
from waver.policies.ask.task import AskTask

Array = NDArray[np.float64]


def by_table(task: AskTask, asked: Sequence[Asked], error: float) -> Array:
    """Compute `f_y` `[hypotheses]` from the task's answers, each of which is wrong with the probability `error`."""
    odds = math.log((1 - error) / error)
    known = [each for each in asked if each.answer is not None]
    fits = task.table[[each.question for each in known]] == np.array([[each.answer] for each in known], bool).reshape(
        -1, 1
    )
    return softmax(odds * fits.sum(0).astype(np.float64))


def softmax(logits: Array) -> Array:
    """Normalise `[classes]` logits."""
    p = np.exp(logits - logits.max())
    return np.asarray(p / p.sum(), np.float64)
