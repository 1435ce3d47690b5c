"""Spread the mass of queries over their nearest candidates, as TSDS does (arXiv 2602.14696, section 3.2).

The more neighbours a query spreads its mass over, the more varied the choice and the larger its distance to the
queries; `ALPHA` and `SCALE` balance the two.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from waver.training.selection.instructions.similarity import Floats, Similarity

ALPHA, SCALE = 0.01, 5.0
MOST = 5000
"""Neighbours of a query that are looked at."""
SIGMA, DENSITY = 0.75, 1000
"""Width of the kernel, and neighbours in a density, at most a tenth of the pool."""
BLOCK = 512


def uniform_count(distances: Floats, alpha: float = ALPHA, scale: float = SCALE) -> int:
    """Return the number K of neighbours of each query.

    Args:
        distances: to the nearest candidates, rising, `[M, L]`.
    """
    queries, most = len(distances), int(distances.shape[1])
    sums = np.cumsum(distances, axis=1)
    for k in range(1, most):
        gap = float((k * distances[:, k] - sums[:, k - 1]).sum())
        if alpha / scale * gap >= (1 - alpha) * queries:
            return k
    return most


def uniform_masses(found: Similarity, alpha: float = ALPHA, scale: float = SCALE) -> Floats:
    """Return the mass of each candidate: 1 / (K M) from each query that has it among its K nearest."""
    queries, pool = found.shape
    places, values = found.nearest(min(MOST, pool))
    k = uniform_count(1 - values, alpha, scale)
    masses = np.zeros(pool)
    np.add.at(masses, places[:, :k].ravel(), 1 / (k * queries))
    return masses


def kernel(cosines: Floats) -> Floats:
    """Return max(0, 1 - 2 d / sigma^2) of the distance d = 1 - cosine."""
    values: Floats = np.maximum(0.0, 1 - 2 * (1 - cosines) / SIGMA**2)
    return values


def densities(found: Similarity, members: NDArray[np.int64]) -> Floats:
    """Return for each member how many near duplicates it has among the others: kernel values of the nearest, itself
    included. A block of members is compared with all at a time."""
    count = min(DENSITY, max(1, found.shape[1] // 10), len(members))
    made = np.zeros(len(members))
    for start in range(0, len(members), BLOCK):
        values = kernel(found.between(members[start : start + BLOCK], members))
        if count < len(members):
            values = np.partition(values, len(members) - count, axis=1)[:, -count:]
        made[start : start + BLOCK] = values.sum(1)
    return made


def kde_masses(found: Similarity, alpha: float = ALPHA, scale: float = SCALE) -> Floats:
    """Return the mass of each candidate when neighbours count by the inverse of their density."""
    pool = found.shape[1]
    places, values = found.nearest(min(MOST, max(2, pool // 10)))
    members, inverse = np.unique(places, return_inverse=True)
    density = densities(found, members)[inverse.reshape(places.shape)]
    shares, _ = allocate(1 - values, density, alpha, scale)
    masses = np.zeros(pool)
    np.add.at(masses, places.ravel(), shares.ravel())
    return masses


def allocate(distances: Floats, density: Floats, alpha: float = ALPHA, scale: float = SCALE) -> tuple[Floats, float]:
    """Return the mass of each query's neighbours `[M, L]`, and the count s that every query reaches.

    Neighbours are accepted one at a time, for the query whose count c (the sum of 1 / density) is the smallest; its
    cost is then d_next c - sum of d / density over those accepted. It ends when alpha / scale times all costs reaches
    (1 - alpha) M, or where a query has no neighbour left.

    Args:
        distances: to the nearest candidates, rising, `[M, L]`. density: of these candidates.
    """
    queries, most = distances.shape
    accepted, spent, costs = [0] * queries, [0.0] * queries, [0.0] * queries
    heap = [(1 / float(density[j, 0]), j) for j in range(queries)]
    heapq.heapify(heap)
    s = heap[0][0]
    while heap:
        count, j = heapq.heappop(heap)
        k = accepted[j]
        if k + 1 >= most:
            break
        s = count
        spent[j] += float(distances[j, k] / density[j, k])
        costs[j] = float(distances[j, k + 1]) * count - spent[j]
        if alpha / scale * sum(costs) >= (1 - alpha) * queries:
            break
        accepted[j] = k + 1
        heapq.heappush(heap, (count + 1 / float(density[j, k + 1]), j))
    return _shares(density, accepted, s), s


def _shares(density: Floats, accepted: Sequence[int], s: float) -> Floats:
    """Give 1 / (M s density) to the accepted neighbours of each query, and the rest of its 1 / M to the next one."""
    queries, most = density.shape
    shares = np.zeros(density.shape)
    for j, k in enumerate(accepted):
        shares[j, :k] = 1 / (queries * s * density[j, :k])
        shares[j, min(k, most - 1)] += 1 / queries - shares[j, :k].sum()
    return shares
