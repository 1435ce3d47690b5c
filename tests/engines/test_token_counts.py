"""Counts of a text that grows, and now and then gets shorter."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from waver.engines.token_counts import TokenCounts


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 5), min_size=1, max_size=4)), min_size=1, max_size=12)
)
def test_it_counts_as_if_anew(changes: list[tuple[int, list[int]]]) -> None:
    counter, text = TokenCounts(), list[int]()
    for back, more in changes:
        shorter = text[: len(text) - back]
        if back:  # a position is decoded again after a preemption
            tokens, counts = counter.count(shorter)
            assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == Counter(shorter)
        text = shorter + more
        tokens, counts = counter.count(text)
        assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == Counter(text)
        assert len(set(tokens.tolist())) == len(tokens)
