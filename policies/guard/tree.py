"""A tree of rules, grown offline: category -> cluster -> leaf (SafeHarbor, arXiv 2605.05704, section II-a).

A new example opens a cluster where it is near none of its category's, or where it lies between several; otherwise it
joins the nearest. With s_k its cosines with the K clusters' centres, at least 0.001:

    max s < 0.5: a new cluster
    p_k = s_k^(1/T) / sum, value = H(p) / log2 K in bits (0 for K = 1); value > threshold: a new cluster

This is the test of the released code. The paper's own, the growth of a cluster's entropy (`gain`), grows with
similarity, so that near-duplicates would open leaves; it is here for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
LEAST = 1e-3
FAR = 0.5
"""Cosine below which an example is near no cluster."""
FAR_VALUE, BROKEN_VALUE = 5.0, 10.0
"""The value of an example that is near no cluster, and of one that the present rules did not stop."""


def bits(p: Vector) -> float:
    """Return the entropy of a distribution in bits."""
    positive = p[p > 0]
    return float(-(positive * np.log2(positive)).sum())


def split_value(cosines: Sequence[float], temperature: float = 0.1) -> float:
    """Return how much an example lies between the clusters of its category; it opens a new one above the threshold."""
    s = np.maximum(np.asarray(cosines, np.float64), LEAST)
    if s.max() < FAR:
        return FAR_VALUE
    return 0.0 if len(s) == 1 else bits(shares(s, temperature)) / float(np.log2(len(s)))


def shares(s: Vector, temperature: float = 0.1) -> Vector:
    """Return p of positive cosines: their powers 1/T, normalised."""
    powers = (s / s.max()) ** (1 / temperature)
    out: Vector = powers / powers.sum()
    return out


def gain(members: Sequence[float], new: float, gamma: float = 0.1) -> float:
    """Return the paper's own test: how much a cluster's entropy (bits) grows with an example, of whose members and
    itself the cosines with the centre are given."""

    def entropy(cosines: Sequence[float]) -> float:
        powers = np.exp((np.asarray(cosines) - max(cosines)) / gamma)
        return bits(powers / powers.sum())

    return entropy([*members, new]) - entropy(members)


@dataclass
class Cluster:
    """Examples that are alike: their centre, and which ones they are."""

    centre: Vector
    leaves: list[int] = field(default_factory=list)


@dataclass
class RuleTree:
    """Clusters by category. `centres`: `mean` keeps the mean of the leaves, `released` the rule of the released code,
    by which a second leaf counts for a third."""

    threshold: float = 0.6
    temperature: float = 0.1
    centres: Literal["mean", "released"] = "mean"
    categories: dict[str, list[Cluster]] = field(default_factory=dict)

    def add(self, category: str, vector: Vector, leaf: int, broken: bool = False) -> bool:
        """Put an example into the tree; return whether it opened a cluster.

        Args:
            vector: unit vector. leaf: its number. broken: the present rules did not stop it.
        """
        clusters = self.categories.setdefault(category, [])
        cosines = [cosine(vector, each.centre) for each in clusters]
        value = BROKEN_VALUE if broken or not cosines else split_value(cosines, self.temperature)
        if value > self.threshold:
            clusters.append(Cluster(vector.copy(), [leaf]))
            return True
        nearest = clusters[int(np.argmax(cosines))]
        nearest.leaves.append(leaf)
        count = len(nearest.leaves)
        share = 1 / count if self.centres == "mean" else 1 / (count + 1)
        nearest.centre = (1 - share) * nearest.centre + share * vector
        return False

    @property
    def clusters(self) -> list[Cluster]:
        """Return the clusters of all categories."""
        return [cluster for clusters in self.categories.values() for cluster in clusters]


def cosine(one: Vector, other: Vector) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0
