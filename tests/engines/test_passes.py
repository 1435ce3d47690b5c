"""Rows are shared out among passes so that together they cost the least."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waver.engines.passes import most_tokens, own_cost, share_out

OWN = 12
QWEN = {"parameters": 1_540_000_000, "layers": 28}


def cost(lengths: Sequence[int], passes: Sequence[Sequence[int]]) -> int:
    return sum(OWN + len(rows) * max(lengths[row] for row in rows) for rows in passes)


def partitions(rows: Sequence[int]) -> list[list[list[int]]]:
    """All ways to put rows into passes."""
    if not rows:
        return [[]]
    first, *rest = rows
    out = []
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [row for row in rest if row not in others]
            out += [[[first, *others], *more] for more in partitions(left)]
    return out


@given(st.lists(st.integers(1, 40), max_size=6))
def test_no_other_passes_cost_less(lengths: list[int]) -> None:
    passes = share_out(lengths, OWN)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    assert cost(lengths, passes) == min(cost(lengths, each) for each in partitions(range(len(lengths))))


@pytest.mark.parametrize(
    ("lengths", "own", "passes"),
    [
        ([], OWN, []),
        ([1, 1, 1], OWN, [[0, 1, 2]]),
        ([1, 16, 1, 1, 1, 1, 1, 15], OWN, [[0, 2, 3, 4, 5, 6], [1, 7]]),  # 8 * 16 tokens in one pass
        ([1, 2, 1], OWN, [[0, 1, 2]]),
        ([1, 16, 1, 1, 1, 1, 1, 15], own_cost("cuda", **QWEN), [list(range(8))]),
        ([1] * 20 + [200] * 15, own_cost("cuda", **QWEN), [list(range(20)), list(range(20, 35))]),
    ],
)
def test_padding_is_weighed_against_a_pass(lengths: list[int], own: float, passes: list[list[int]]) -> None:
    assert share_out(lengths, own) == passes


def test_a_pass_costs_more_tokens_the_smaller_the_model() -> None:
    assert own_cost("cpu", **QWEN) == pytest.approx(12.9, abs=0.1)
    assert own_cost("cpu", 2_016_960, 6) > 150
    assert own_cost("cuda", **QWEN) > 1000
    assert most_tokens("cpu", 1_540_000_000) == 155
    assert most_tokens("cpu", 2_016_960) == most_tokens("cuda", 1_540_000_000) == 2048
    assert most_tokens("cpu", 70_000_000_000) == 64
