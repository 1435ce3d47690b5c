"""Order the candidates of a pool by their similarity to a set of queries (arXiv 2602.14696, section 3.2).

A selector gets the similarities and a budget, and returns an order of candidates, nearest first, with the score of each
in it; the choice under a smaller budget is its beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waver.training.selection.instructions import neighbours
from waver.training.selection.instructions.similarity import Floats, Similarity

EPSILON = 0.01
"""Entropic regularisation of the transport."""
CANDIDATE_PENALTY = 1e-4
"""Penalty of the candidates' marginal; that of the queries is infinite."""
ROUNDS, ENOUGH = 1000, 1e-6


@dataclass(frozen=True)
class Ordered:
    """Candidates, nearest first, and the score of each."""

    places: NDArray[np.int64]
    scores: Floats

    def __post_init__(self) -> None:
        assert len(self.places) == len(self.scores)


Selector = Callable[[Similarity, int], Ordered]
"""Makes of similarities and a budget the order of that many candidates."""


def round_robin(found: Similarity, budget: int) -> Ordered:
    """Let the queries in turn take the nearest candidate that is left."""
    queries, pool = found.shape
    budget = min(budget, pool)
    places, values = found.nearest(budget)  # no query needs more: at most `budget` - 1 are taken by others
    taken = np.zeros(pool, bool)
    at = [0] * queries
    order: list[int] = []
    scores: list[float] = []
    while len(order) < budget:
        own = len(order) % queries
        while taken[places[own, at[own]]]:
            at[own] += 1
        taken[places[own, at[own]]] = True
        order.append(int(places[own, at[own]]))
        scores.append(float(values[own, at[own]]))
    return Ordered(np.array(order, np.int64), np.array(scores))


def doubly_greedy(found: Similarity, budget: int) -> Ordered:
    """Sort candidates by their largest similarity to any query."""
    return _sorted(np.concatenate([block.max(0) for _, block in found.blocks()]), budget)


def uot_masses(found: Similarity) -> Floats:
    """Return each candidate's mass under entropic unbalanced transport from the queries, by scaling iterations.

    Cost (1 - S) / 2, uniform marginals a = 1/M and b = 1/N, kernel exp(-cost / eps) a b (KL to a b); the queries'
    marginal is kept, the candidates' may give at a penalty of 1e-4.
    """
    pool = found.shape[1]
    power = CANDIDATE_PENALTY / (CANDIDATE_PENALTY + EPSILON)
    v = np.ones(pool)
    u = _queries_scaled(found, v)
    for _ in range(ROUNDS):
        v = np.concatenate([((1 / pool) / (_kernel(block, pool).T @ u)) ** power for _, block in found.blocks()])
        before, u = u, _queries_scaled(found, v)
        if np.abs(u - before).max() <= ENOUGH * np.abs(u).max():
            break
    parts = [v[start : start + block.shape[1]] * (_kernel(block, pool).T @ u) for start, block in found.blocks()]
    return np.concatenate(parts)


def _queries_scaled(found: Similarity, v: Floats) -> Floats:
    """Return u = a / (K v): what makes the queries' marginal uniform."""
    queries, pool = found.shape
    total = np.zeros(queries)
    for start, block in found.blocks():
        total += _kernel(block, pool) @ v[start : start + block.shape[1]]
    return np.asarray((1 / queries) / total)


def _kernel(block: Floats, pool: int) -> Floats:
    return np.asarray(np.exp(-(1 - block) / 2 / EPSILON) / (len(block) * pool))


def uot(found: Similarity, budget: int) -> Ordered:
    """Sort candidates by the mass that unbalanced optimal transport moves to them."""
    return _sorted(uot_masses(found), budget)


def softmax_masses(found: Similarity) -> Floats:
    """Return the mean over queries of softmax(S / 0.02): nearly the masses of `uot`, in two passes."""
    peak = np.max([block.max(1) for _, block in found.blocks()], axis=0)
    total = sum(np.exp((block - peak[:, None]) / (2 * EPSILON)).sum(1) for _, block in found.blocks())
    parts = [(np.exp((block - peak[:, None]) / (2 * EPSILON)) / total[:, None]).mean(0) for _, block in found.blocks()]
    return np.concatenate(parts)


def uot_softmax(found: Similarity, budget: int) -> Ordered:
    """Sort candidates by the mean over queries of softmax(S / 0.02)."""
    return _sorted(softmax_masses(found), budget)


def knn_uniform(found: Similarity, budget: int) -> Ordered:
    """Sort candidates by the mass that each query gives in equal parts to its K nearest."""
    return _sorted(neighbours.uniform_masses(found), budget)


def knn_kde(found: Similarity, budget: int) -> Ordered:
    """Sort candidates by the mass that queries give to their nearest, less to those with many near duplicates."""
    return _sorted(neighbours.kde_masses(found), budget)


def at_random(seed: int) -> Selector:
    """Return a selector that shuffles the pool."""

    def select(found: Similarity, budget: int) -> Ordered:
        order = np.random.default_rng(seed).permutation(found.shape[1])[:budget]
        return Ordered(order, np.zeros(len(order)))

    return select


def _sorted(scores: Floats, budget: int) -> Ordered:
    order = np.argsort(-scores, kind="stable")[:budget]
    return Ordered(order, scores[order])


SELECTORS: dict[str, Selector] = {
    "round_robin": round_robin,
    "doubly_greedy": doubly_greedy,
    "uot": uot,
    "uot_softmax": uot_softmax,
    "knn_uniform": knn_uniform,
    "knn_kde": knn_kde,
}
"""Selectors by name; `random` is made with a seed."""
