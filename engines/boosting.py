"""Boosted trees for a binary class, as plain arrays that need no training library to be evaluated.

A leaf's `feature` is -1. At an inner node a row goes left where its value is at most the node's threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ARRAYS: dict[str, type[np.generic]] = {
    "roots": np.int64,
    "feature": np.int64,
    "threshold": np.float64,
    "left": np.int64,
    "right": np.int64,
    "value": np.float64,
    "base": np.float64,
}
"""Types of the arrays, by their names."""


@dataclass(frozen=True)
class Trees:
    """An ensemble: `roots` `[trees]` are places among the `[nodes]` of the other arrays, `base` `[1]` is what all trees
    add to. `value` holds the leaves' log-odds."""

    roots: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]
    base: NDArray[np.float64]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.generic]], width: int) -> Trees:
        """Make an ensemble over rows of `width` features from its arrays.

        Raises:
            ValueError: they do not fit together. A child stands behind its parent, so that every walk ends.
        """
        if missing := set(ARRAYS) - set(arrays):
            raise ValueError(f"the array {min(missing)!r} is missing")
        trees = cls(**{name: np.asarray(arrays[name], kind) for name, kind in ARRAYS.items()})
        nodes = len(trees.feature)
        sizes = {len(getattr(trees, name)) for name in ("threshold", "left", "right", "value")}
        inner = np.flatnonzero(trees.feature >= 0)
        children = np.concatenate([trees.left[inner], trees.right[inner]])
        behind = bool((children > np.concatenate([inner, inner])).all())
        inside = [trees.roots, children]
        if (
            sizes != {nodes}
            or not behind
            or any(len(each) and not (each.min() >= 0 and each.max() < nodes) for each in inside)
            or bool((trees.feature >= width).any())
            or trees.base.shape != (1,)
        ):
            raise ValueError("its arrays do not fit together")
        return trees

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name, for `of`."""
        return {name: getattr(self, name) for name in ARRAYS}

    def probability(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the probability of the class: `[rows]` for features `[rows, features]` without NaN."""
        at = np.broadcast_to(self.roots, (len(rows), len(self.roots))).copy()
        row = np.arange(len(rows))[:, None]
        while (feature := self.feature[at]).max(initial=-1) >= 0:
            goes_left = rows[row, np.maximum(feature, 0)] <= self.threshold[at]
            at = np.where(feature < 0, at, np.where(goes_left, self.left[at], self.right[at]))
        log_odds = self.base[0] + self.value[at].sum(1)
        return np.asarray(1 / (1 + np.exp(-log_odds)), np.float64)
