"""The entropy test by which a tree of rules grows: numbers worked out by hand, and families on a sphere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from waver.policies.guard.tree import RuleTree, cosine, gain, shares, split_value

FAMILIES, STREAM, DIMENSION = 12, 500, 64


@pytest.mark.parametrize(
    ("cosines", "value"),
    [([0.9, 0.6, 0.5], 0.095580), ([0.8, 0.78, 0.75], 0.970127), ([0.9, 0.3], 0.000293), ([0.9], 0.0),
     ([0.45, 0.4], 5.0), ([0.7, *[0.5] * 49], 0.794165), ([0.9, *[0.5] * 49], 0.214190), ([-0.2], 5.0)],
)  # fmt: skip
def test_by_hand(cosines: Sequence[float], value: float) -> None:
    assert split_value(cosines) == pytest.approx(value, abs=1e-6)


def test_shares_by_hand() -> None:
    assert shares(np.array([0.9, 0.6, 0.5])) == pytest.approx([0.980255, 0.016999, 0.002745], abs=1e-6)


def test_the_paper_s_gain_grows_with_similarity() -> None:
    members = [0.9, 0.8, 0.85]
    assert gain(members, 0.87) == pytest.approx(0.443938, abs=1e-6)
    assert gain(members, 0.55) == pytest.approx(0.090575, abs=1e-6)


@pytest.mark.parametrize(
    ("centres", "expected"),
    [("released", [(2 / 3, 1 / 3), (0.5, 0.5), (0.4, 0.6)]), ("mean", [(0.5, 0.5), (1 / 3, 2 / 3), (0.25, 0.75)])],
)
def test_centres_by_hand(centres: str, expected: list[tuple[float, float]]) -> None:
    tree = RuleTree(threshold=9.0, centres=centres)  # type: ignore[arg-type]
    tree.categories["a"] = []
    tree.add("a", np.array([1.0, 0.0]), 0)
    for number, centre in enumerate(expected, 1):
        assert not tree.add("a", np.array([0.0, 1.0]), number)
        assert tree.clusters[0].centre == pytest.approx(centre)


def test_what_was_not_stopped_opens_a_cluster() -> None:
    tree = RuleTree()
    assert tree.add("a", np.array([1.0, 0.0]), 0)
    assert not tree.add("a", np.array([1.0, 0.0]), 1)
    assert tree.add("a", np.array([1.0, 0.0]), 2, broken=True)
    assert tree.add("b", np.array([1.0, 0.0]), 3)
    assert [each.leaves for each in tree.clusters] == [[0, 1], [2], [3]]


def unit(vector: np.ndarray) -> np.ndarray:
    found: np.ndarray = vector / np.linalg.norm(vector)
    return found


def stream(seed: int) -> list[tuple[int, np.ndarray]]:
    """Examples of families that share a direction, so that families are hard to tell apart."""
    draw = np.random.default_rng(seed)

    def direction() -> np.ndarray:
        return unit(draw.standard_normal(DIMENSION))

    common = direction()
    families = [unit(direction() + 1.2 * common) for _ in range(FAMILIES)]
    chosen = draw.integers(FAMILIES, size=STREAM)
    return [(int(i), unit(families[i] + 0.75 * direction())) for i in chosen]


def purity(groups: Sequence[Sequence[int]], families: Sequence[int]) -> float:
    largest = [np.bincount([families[i] for i in group]).max() for group in groups]
    return float(sum(largest)) / len(families)


def by_cosine(examples: Sequence[tuple[int, np.ndarray]], threshold: float) -> list[list[int]]:
    """Group by a single rule: a new cluster wherever no centre is as near as that."""
    centres: list[np.ndarray] = []
    groups: list[list[int]] = []
    for number, (_, vector) in enumerate(examples):
        cosines = [cosine(vector, centre) for centre in centres]
        if not cosines or max(cosines) < threshold:
            centres.append(vector)
            groups.append([number])
            continue
        at = int(np.argmax(cosines))
        groups[at].append(number)
        share = 1 / (len(groups[at]) + 1)
        centres[at] = (1 - share) * centres[at] + share * vector
    return groups


def test_few_clusters_that_are_pure() -> None:
    """No single rule of the cosine does both."""
    ours, loose, strict = [], [], []
    for seed in range(2):
        examples = stream(seed)
        families = [family for family, _ in examples]
        tree = RuleTree(centres="released")
        for number, (_, vector) in enumerate(examples):
            tree.add("one", vector, number)
        for found, groups in ((ours, [c.leaves for c in tree.clusters]), (loose, by_cosine(examples, 0.5)),
                              (strict, by_cosine(examples, 0.8))):  # fmt: skip
            found.append((len(groups), purity(groups, families)))
    counts, purities = np.mean(ours, axis=0)
    assert counts < 60
    assert purities > 0.9
    assert np.mean(loose, axis=0)[1] < 0.8
    assert np.mean(strict, axis=0)[0] > 400
