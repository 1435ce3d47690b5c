"""Measures of how much several answers to one question disagree; each is higher where the model is less certain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def clusters(similarity: ArrayLike, threshold: float) -> list[list[int]]:
    """Group answers by meaning: each joins the first group whose first member is at least this similar to it."""
    a = np.asarray(similarity, np.float64)
    out: list[list[int]] = []
    for place in range(len(a)):
        for group in out:
            if a[group[0], place] >= threshold:
                group.append(place)
                break
        else:
            out.append([place])
    return out


def semantic_entropy(groups: Sequence[Sequence[int]]) -> float:
    """Compute the entropy (nats) of the shares of answers by meaning (discrete semantic entropy, arXiv 2302.09664)."""
    sizes = np.array([len(group) for group in groups], np.float64)
    p = sizes / sizes.sum()
    return float(-(p * np.log(p)).sum()) + 0.0


def disagreement(groups: Sequence[Sequence[int]]) -> float:
    """Return the share of answers that do not mean what most of them do (self-consistency, arXiv 2203.11171)."""
    sizes = [len(group) for group in groups]
    return 1.0 - max(sizes) / sum(sizes)


def degree(similarity: ArrayLike) -> float:
    """Compute DegMat, trace(mI - D) / m^2 with D the degrees of m answers (arXiv 2305.19187)."""
    a = np.asarray(similarity, np.float64)
    return float(1 - a.sum() / len(a) ** 2)


def luq(support: NDArray[np.float64]) -> float:
    """Compute LUQ (arXiv 2403.20279): 1 - the mean support of an answer's sentences by each of the other answers.

    Args:
        support: `[answers, answers]`: how far the sentences of one are supported by another; the diagonal is not used.
    """
    m = len(support)
    if m < 2:
        return 0.0
    return float(1 - (support.sum() - np.trace(support)) / (m * (m - 1)))


def predictive_entropy(logprobs: Sequence[float], lengths: Sequence[int]) -> float:
    """Estimate the entropy of answers by their mean negative log-probability a token (length-normalised, nats)."""
    return float(np.mean([-p / max(n, 1) for p, n in zip(logprobs, lengths, strict=True)]))
