"""Link what is alike, and walk from what a question is like (MemGAS, arXiv 2505.19549, sections on association and
retrieval).

A new node's similarities with earlier ones are split by a mixture of two normal distributions; it is linked with those
in the upper part. At a question, a walk that begins anew at the nodes the question is like, and follows a link with
probability d each step, says how much every node has to do with it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Links = npt.NDArray[np.int64]
FEWEST = 3
"""Similarities below which none is told from the others: all are accepted."""
SPREAD = 1e-6
"""Range of similarities that counts as none."""
GAP = 2.0
"""Pooled standard deviations between the parts' means from which they count as two, with `wide`."""
TOLERANCE, MOST_STEPS = 1e-12, 1000


def accepted(similarities: Floats, wide: bool = False) -> Mask:
    """Return which of some similarities belong to the upper of two normal distributions that are fitted to them; all
    where they are fewer than three, or equal.

    Args:
        wide: (ours) accept the largest alone where the two distributions' means are less than two of their pooled
            standard deviations apart, as a mixture also cuts what is one group.
    """
    if len(similarities) < FEWEST or np.ptp(similarities) < SPREAD:
        return np.ones(len(similarities), bool)
    from sklearn.mixture import GaussianMixture

    column = similarities[:, None]
    mixture = GaussianMixture(2, random_state=0, max_iter=1000).fit(column)
    means = mixture.means_[:, 0]
    if wide:
        pooled = float(np.sqrt(mixture.weights_ @ mixture.covariances_[:, 0, 0]))
        if abs(means[0] - means[1]) < GAP * pooled:
            largest: Mask = np.arange(len(similarities)) == int(np.argmax(similarities))
            return largest
    upper: Mask = mixture.predict(column) == int(np.argmax(means))
    return upper


def neighbours(vector: Floats, others: Floats, candidates: int = 30, wide: bool = False) -> list[int]:
    """Return which of some nodes `[n, dimension]` a new one is linked with, of the `candidates` most similar ones."""
    similarities = others @ vector
    order = np.argsort(-similarities, kind="stable")[:candidates]
    return [int(i) for i in order[accepted(similarities[order], wide)]]


def walk(links: Links, restart: Floats, damping: float) -> Floats:
    """Compute the personalised PageRank x = d P^T x + (1 - d) v, `[n]`.

    Args:
        links: pairs of nodes `[m, 2]`, undirected, without weights. restart: v `[n]`, its sum 1. damping: d, the
            probability of following a link; a node without links sends its share back to v.
    """
    from scipy.sparse import coo_matrix

    n = len(restart)
    both = np.concatenate([links, links[:, ::-1]]) if len(links) else np.zeros((0, 2), np.int64)
    matrix = coo_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(n, n)).tocsr()
    matrix.data[:] = 1.0  # a link that was made twice counts once
    degrees = np.asarray(matrix.sum(axis=1)).ravel()
    alone, shares = degrees == 0, np.maximum(degrees, 1)
    x = restart
    for _ in range(MOST_STEPS):
        moved: Floats = damping * (matrix.T @ (x / shares) + x[alone].sum() * restart) + (1 - damping) * restart
        if np.abs(moved - x).sum() < TOLERANCE:
            return moved
        x = moved
    return x
