"""Score a ranking against what should be found (gold), as MemGAS' code does (arXiv 2505.19549) and by shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def recall(found: Sequence[str], evidence: Sequence[str], k: int) -> float:
    """Return the share of the evidence among the first k turns that were found."""
    return len(set(found[:k]).intersection(evidence)) / len(evidence)


def recall_all(found: Sequence[Any], gold: Sequence[Any], k: int) -> float:
    """Return 1 where all of the gold is among the first k, else 0."""
    return float(set(gold) <= set(found[:k]))


def recall_any(found: Sequence[Any], gold: Sequence[Any], k: int) -> float:
    """Return 1 where any of the gold is among the first k, else 0."""
    return float(bool(set(gold) & set(found[:k])))


def old_ndcg(found: Sequence[Any], gold: Sequence[Any], k: int) -> float:
    """Return nDCG in its old form, gains rel_1 + sum over i >= 2 of rel_i / log2(i), which MemGAS' code has."""
    discounts = np.log2(np.maximum(np.arange(1, k + 1), 2))
    hits = np.isin(list(found[:k]), list(gold))
    return float((hits / discounts[: len(hits)]).sum() / (1 / discounts[: min(len(set(gold)), k)]).sum())
