"""Rolling means: the paper's trace, the scalar form against plain slices, the batched form against the scalar one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waver.devices import make_array
from waver.entropy import BatchedRollingEntropy, RollingEntropy, bits_to_nats, nats_to_bits

CPU = torch.device("cpu")

entropies = st.floats(0, 12, width=32)


def test_the_papers_trace() -> None:
    """arXiv 2502.06833, w = 5, partial windows averaged."""
    stream = [0.2, 0.1, 1.5, 2.0, 1.8, 0.3, 0.2, 0.1, 0.1, 0.2]
    expected = [0.2, 0.15, 0.6, 0.95, 1.12, 1.14, 1.16, 0.88, 0.5, 0.18]
    window = RollingEntropy(5)
    assert [window.push(value) for value in stream] == pytest.approx(expected)
    batched = BatchedRollingEntropy(1, 5, CPU)
    one, five = np.array([0]), np.array([5])
    means = [batched.observe(one, np.array([t]), five, np.array([h]), 5).item() for t, h in enumerate(stream)]
    assert means == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 8), st.lists(entropies, max_size=20), st.lists(entropies, min_size=1, max_size=20))
def test_mean_is_that_of_the_last_values(window: int, history: list[float], stream: list[float]) -> None:
    rolling = RollingEntropy(window, history)
    for i, value in enumerate(stream):
        seen = (history + stream[: i + 1])[-window:]
        peeked = rolling.peek(value)
        assert rolling.values == tuple((history + stream[:i])[-window:])
        assert rolling.push(value) == peeked == pytest.approx(sum(seen) / len(seen))
        assert rolling.mean == peeked
        assert rolling.values == tuple(seen)


def test_nothing_seen_yet() -> None:
    assert RollingEntropy(3).mean == 0.0
    assert RollingEntropy(3).values == ()


@pytest.mark.parametrize("lib", [np, torch], ids=["as on a CPU", "as on a GPU"])
@given(st.data())
def test_batched_equals_scalar(lib: Any, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("waver.entropy.rolling.array_namespace", lambda _: lib)
        patch.setattr("waver.devices.array_namespace", lambda _: lib)
        _batched_equals_scalar(data)


def _batched_equals_scalar(data: st.DataObject) -> None:
    """Random subsets of rows take in values, measure a position again, and start over: each row is as if alone."""
    n, reach = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    batched = BatchedRollingEntropy(n, reach, CPU)
    windows = [data.draw(st.integers(1, reach)) for _ in range(n)]
    streams: list[tuple[list[float], list[float]]] = [([], []) for _ in range(n)]
    for _ in range(data.draw(st.integers(1, 14))):
        chosen = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=n))
        if data.draw(st.sampled_from(["observe", "observe", "observe", "begin"])) == "begin":
            for row in chosen:
                history = data.draw(st.lists(entropies, max_size=12))
                windows[row] = data.draw(st.integers(1, reach))
                streams[row] = (history, [])
                batched.begin(row, history)
            continue
        values = data.draw(st.lists(entropies, min_size=len(chosen), max_size=len(chosen)))
        positions = []
        for row, value in zip(chosen, values, strict=True):
            made = streams[row][1]
            if made and data.draw(st.booleans()):
                made.pop()  # the last token was thrown away: its position is measured again
            positions.append(len(made))
            made.append(value)
        sizes = [windows[row] for row in chosen]
        index, at, sizes_of = (make_array(each, CPU) for each in (chosen, positions, sizes))
        means = batched.observe(index, at, sizes_of, make_array(values, CPU, "float64"), max(sizes))
        expected = [RollingEntropy(windows[row], [*streams[row][0], *streams[row][1]]).mean for row in chosen]
        assert means.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RollingEntropy(0)


def test_units() -> None:
    assert bits_to_nats(1.0) == pytest.approx(0.693147, abs=1e-6)
    assert nats_to_bits(bits_to_nats(1.75)) == pytest.approx(1.75)
    torch.testing.assert_close(nats_to_bits(torch.tensor([0.693147, 0.0])), torch.tensor([1.0, 0.0]))
