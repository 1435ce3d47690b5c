"""Compute the group similarity rewards of Con-RAG (arXiv 2510.04392), and its measures of consistency.

Of one question: n wordings, g answers to each, o[i][j] the j-th answer to wording i.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from itertools import combinations

from waver.training.tasks.consistency.similarity import Similarity

Answers = Sequence[Sequence[str]]


def exact_rewards(answers: Answers, similarity: Similarity) -> list[list[float]]:
    """Return r_ij = the mean similarity of o_ij to all answers to the OTHER wordings; its own are left out.

    n (n - 1) g^2 comparisons. Answers to a single wording have nothing to be compared with: NaN.
    """
    found = []
    for i, own in enumerate(answers):
        others = [other for u, group in enumerate(answers) if u != i for other in group]
        found.append([_mean([similarity(each, other) for other in others]) for each in own])
    return found


def relaxed_rewards(
    answers: Answers, similarity: Similarity, rng: random.Random, wordings: int = 3, samples: int = 1
) -> list[list[float]]:
    """Return an unbiased estimate of the exact rewards from a few comparisons: n g wordings samples of them.

    Args:
        wordings: other wordings to compare with (kappa), drawn anew for each answer without replacement.
        samples: answers to each of them (s).
    """
    found = []
    for i, own in enumerate(answers):
        others = [group for u, group in enumerate(answers) if u != i]
        row = []
        for each in own:
            chosen = rng.sample(others, min(wordings, len(others)))
            means = [
                _mean([similarity(each, other) for other in rng.sample(list(group), min(samples, len(group)))])
                for group in chosen
            ]
            row.append(_mean(means))
        found.append(row)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def retriever_consistency(found: Sequence[Collection[str]]) -> float:
    """Return the mean Jaccard similarity of the passages that two wordings find; NaN for a single wording.

    Args:
        found: the names of the passages of each wording. Two wordings that find nothing agree.
    """
    return _mean([_jaccard(set(one), set(other)) for one, other in combinations(found, 2)])


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def answer_consistency(answers: Sequence[str], similarity: Similarity) -> float:
    """Return the mean similarity over ordered pairs of the answers to the wordings; NaN for a single one.

    With each wording's own passages it is the end-to-end consistency, with the same passages for all the generator's.
    """
    return _mean([similarity(a, b) for i, a in enumerate(answers) for j, b in enumerate(answers) if i != j])


def split_consistency(
    answers: Sequence[str], similarity: Similarity, right: Callable[[str], bool]
) -> tuple[float, float]:
    """Return the consistency of right answers with right ones, and of wrong answers with wrong ones; NaN where there
    are fewer than two. Being always wrong in the same way is consistent, too."""
    kinds = [right(each) for each in answers]
    good = [each for each, ok in zip(answers, kinds, strict=True) if ok]
    bad = [each for each, ok in zip(answers, kinds, strict=True) if not ok]
    return answer_consistency(good, similarity), answer_consistency(bad, similarity)
