"""Isotonic regression: the rising step function that fits outcomes best, by pooling adjacent violators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator


class Isotonic(BaseModel):
    """A rising function, by its knots: linear between two, level outside of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    x: tuple[float, ...]
    y: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Isotonic:
        if not self.x or len(self.x) != len(self.y) or list(self.x) != sorted(set(self.x)):
            raise ValueError("knots are as many rising x as there are y")
        if list(self.y) != sorted(self.y):
            raise ValueError("the function must not fall")
        return self

    def __call__(self, score: float) -> float:
        return float(np.interp(score, self.x, self.y))


def fit(scores: Sequence[float], outcomes: Sequence[float]) -> Isotonic:
    """Fit outcomes (such as 1 for wrong, 0 for right) as a rising function of scores.

    Raises:
        ValueError: there are none, or a score is not finite.
    """
    if not len(scores) or not np.isfinite(np.asarray(scores, np.float64)).all():
        raise ValueError("isotonic regression needs finite scores")
    x, inverse = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    weight = np.bincount(inverse).astype(float)
    mean = np.bincount(inverse, np.asarray(outcomes, np.float64)) / weight
    blocks: list[tuple[float, float, int]] = []  # mean, weight, number of distinct scores
    for value, share in zip(mean.tolist(), weight.tolist(), strict=True):
        block = (value, share, 1)
        while blocks and blocks[-1][0] >= block[0]:
            level, own, count = blocks.pop()
            total = own + block[1]
            block = ((level * own + block[0] * block[1]) / total, total, count + block[2])
        blocks.append(block)
    fitted = np.concatenate([np.full(count, value) for value, _, count in blocks])
    # The ends of each level are enough to draw it.
    keep = [i for i in range(len(x)) if i in (0, len(x) - 1) or not fitted[i - 1] == fitted[i] == fitted[i + 1]]
    return Isotonic(x=tuple(x[keep].tolist()), y=tuple(fitted[keep].tolist()))
