"""Fit a judge: boosted trees over the features of runs (Entropy Judger, arXiv 2602.04234).

The paper averages XGBoost and LightGBM with 100 trees, learning rate 0.1 and depth 6 each; this is scikit-learn's
histogram gradient boosting with the same numbers. The paper fits on one run of each question; here every run that was
drawn counts, as runs of one question tell what sets a right one apart from a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from waver.engines.boosting import Trees

Rows = NDArray[np.float64]
FOLDS = 5


@dataclass(frozen=True)
class Recipe:
    """The paper's settings of the trees."""

    trees: int = 100
    learning_rate: float = 0.1
    depth: int = 6
    seed: int = 42


PAPER = Recipe()


@dataclass(frozen=True)
class Fitted:
    """Trees over some features, and the medians that stand in for NaN."""

    trees: Trees
    medians: Rows
    names: tuple[str, ...]

    def probability(self, rows: Rows) -> Rows:
        """Compute the probability of being right: `[rows]` for `[rows, features]`, NaN allowed."""
        return self.trees.probability(np.where(np.isnan(rows), self.medians, rows))


def matrix(features: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> Rows:
    """Return `[runs, features]`; NaN where a feature is None or missing."""
    return np.array([[np.nan if (v := each.get(n)) is None else v for n in names] for each in features], np.float64)


def tabulate(lines: Sequence[Mapping[str, Any]]) -> tuple[Rows, NDArray[np.bool_], tuple[str, ...]]:
    """Return the features `[questions, runs, features]` of the runs of questions, whether each run is right
    `[questions, runs]`, and the names of the features."""
    names = tuple(lines[0]["runs"][0]["features"])
    table = matrix([run["features"] for line in lines for run in line["runs"]], names)
    right = np.array([[run["right"] for run in line["runs"]] for line in lines], bool)
    return table.reshape(*right.shape, len(names)), right, names


def told(rows: Rows) -> NDArray[np.bool_]:
    """Tell which features, `[features]`, have any value at all."""
    return np.asarray(~np.isnan(rows).all(0))


def fit(rows: Rows, right: Sequence[bool], names: Sequence[str], recipe: Recipe = PAPER) -> Fitted:
    """Fit trees to `[runs, features]` and whether each run is right. Features without any value are left out.

    Raises:
        ValueError: all runs are right, or all wrong.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    kinds = set(map(bool, right))
    if len(kinds) < 2:
        said = "all runs are right" if kinds == {True} else "no run is right"
        raise ValueError(f"{said}: a judge needs both kinds")
    kept = told(rows)
    rows = rows[:, kept]
    medians = np.nanmedian(rows, axis=0)
    model = HistGradientBoostingClassifier(
        max_iter=recipe.trees,
        learning_rate=recipe.learning_rate,
        max_depth=recipe.depth,
        random_state=recipe.seed,
        early_stopping=False,
    )
    model.fit(np.where(np.isnan(rows), medians, rows), np.asarray(right, bool))
    own = tuple(name for name, keep in zip(names, kept, strict=True) if keep)
    return Fitted(as_arrays(model, len(own)), medians, own)


def as_arrays(model: Any, width: int) -> Trees:
    """Return a fitted binary classifier of scikit-learn as plain arrays; leaves hold the learning rate already."""
    nodes, roots, at = [], [], 0
    for (predictor,) in model._predictors:
        own = predictor.nodes
        roots.append(at)
        leaf = own["is_leaf"].astype(bool)
        nodes.append(
            {
                "feature": np.where(leaf, -1, own["feature_idx"].astype(np.int64)),
                "threshold": np.where(leaf, 0.0, own["num_threshold"]),
                "left": np.where(leaf, 0, own["left"].astype(np.int64) + at),
                "right": np.where(leaf, 0, own["right"].astype(np.int64) + at),
                "value": np.where(leaf, own["value"], 0.0),
            }
        )
        at += len(own)
    arrays = {name: np.concatenate([each[name] for each in nodes]) for name in nodes[0]}
    base = np.asarray(model._baseline_prediction, np.float64).reshape(-1)[:1]
    return Trees.of({**arrays, "roots": np.asarray(roots), "base": base}, width)


def held_out(rows: Rows, right: ArrayLike, names: Sequence[str], recipe: Recipe = PAPER) -> Rows:
    """Predict each of `[questions, runs, features]` by a judge that was fitted on the runs of other questions.

    Returns:
        `[questions, runs]` probabilities; NaN in a fold whose training runs are all right or all wrong.

    Args:
        right: `[questions, runs]`, whether each run is right.
    """
    order = np.random.default_rng(recipe.seed).permutation(len(rows))
    out = np.full(rows.shape[:2], np.nan)
    truth = np.asarray(right, bool)
    for part in np.array_split(order, min(FOLDS, len(rows))):
        rest = np.setdiff1d(order, part)
        taught = truth[rest].ravel()
        if len(set(taught)) < 2:
            continue
        made = fit(rows[rest].reshape(-1, rows.shape[-1]), list(taught), names, recipe)
        places = [list(names).index(name) for name in made.names]
        out[part] = made.probability(rows[part][..., places].reshape(-1, len(places))).reshape(len(part), -1)
    return out
