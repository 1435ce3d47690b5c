"""Groups by difficulty, and what shape their entropies have."""

from __future__ import annotations

import pytest

from waver.training.probe.labels import Answers
from waver.training.probe.shape import groups, u_shape


def shaped(means: list[float], spread: float = 0.01) -> tuple[bool, str]:
    levels = [level for level in range(1, len(means) + 1) for _ in range(2)]
    answers = [Answers(1, 5, mean + off, 0) for mean in means for off in (-spread, spread)]
    return u_shape(groups(levels, answers))


def test_groups_are_means_with_errors() -> None:
    (low, high) = groups([2, 1, 2], [Answers(1, 10, 0.2, 0), Answers(0.5, 8, 0.9, 0), Answers(0, 20, 0.4, 0)])
    assert (low.level, low.count, low.right, low.tokens, low.entropy) == (1, 1, 0.5, 8, 0.9)
    assert (high.right, high.tokens, high.entropy) == (0.5, 15, pytest.approx(0.3))
    assert high.error == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("means", "appears", "words"),
    [
        ([0.42, 0.33, 0.31, 0.36, 0.47], True, "a fall by 26.2 %"),
        ([0.1, 0.2, 0.3], False, "rises"),
        ([0.3, 0.2, 0.1], False, "even the hardest are answered rightly in 100.0 %"),
        ([0.302, 0.3, 0.301], False, "no end lies clearly above"),
        ([0.305, 0.3, 0.5], False, "rises"),
    ],
)
def test_shapes(means: list[float], appears: bool, words: str) -> None:
    found, said = shaped(means)
    assert found is appears
    assert words in said
