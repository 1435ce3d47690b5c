"""Rolling means: the paper's trace, the scalar form against plain slices, the batched form against the scalar one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy import BatchedRollingEntropy, RollingEntropy, bits_to_nats, nats_to_bits

entropies = st.floats(0, 12, width=32)


def test_the_papers_trace() -> None:
    """arXiv 2502.06833, w = 5, partial windows averaged."""
    stream = [0.2, 0.1, 1.5, 2.0, 1.8, 0.3, 0.2, 0.1, 0.1, 0.2]
    expected = [0.2, 0.15, 0.6, 0.95, 1.12, 1.14, 1.16, 0.88, 0.5, 0.18]
    window = RollingEntropy(5)
    assert [window.push(value) for value in stream] == pytest.approx(expected)
    batched = BatchedRollingEntropy(1, 5)
    means = [batched.push(torch.tensor([0]), torch.tensor([value])).item() for value in stream]
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
    assert BatchedRollingEntropy(2, 3).mean(torch.tensor([0, 1])).tolist() == [0.0, 0.0]


windows = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(windows, st.data())
def test_batched_equals_scalar(sizes: list[int], data: st.DataObject) -> None:
    """Random pushes, peeks, resets, moves and swaps of random rows leave both forms in the same state."""
    n = len(sizes)
    batched = BatchedRollingEntropy(n, sizes)
    scalar = [RollingEntropy(size) for size in sizes]
    sizes = list(sizes)
    for _ in range(data.draw(st.integers(1, 12))):
        chosen = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=n))
        index = torch.tensor(chosen)
        match data.draw(st.sampled_from(["push", "push", "push", "reset", "resize", "move", "swap"])):
            case "push":
                values = data.draw(st.lists(entropies, min_size=len(chosen), max_size=len(chosen)))
                peeked = batched.peek(index, torch.tensor(values))
                pushed = batched.push(index, torch.tensor(values))
                torch.testing.assert_close(peeked, pushed, rtol=1e-6, atol=1e-6)
                for row, value in zip(chosen, values, strict=True):
                    scalar[row].push(value)
            case "reset" | "resize" as kind:
                histories = data.draw(
                    st.lists(st.lists(entropies, max_size=12), min_size=len(chosen), max_size=len(chosen))
                )
                new = data.draw(st.lists(st.integers(1, 9), min_size=len(chosen), max_size=len(chosen)))
                batched.reset(chosen, histories, new if kind == "resize" else None)
                for row, history, size in zip(chosen, histories, new, strict=True):
                    sizes[row] = size if kind == "resize" else sizes[row]
                    scalar[row] = RollingEntropy(sizes[row], history)
            case "move":
                target = chosen[0]
                source = data.draw(st.integers(0, n - 1))
                batched.move(torch.tensor([source]), torch.tensor([target]))
                scalar[target] = RollingEntropy(sizes[source], scalar[source].values)
                sizes[target] = sizes[source]
            case "swap" if len(chosen) > 1:
                a, b = chosen[:2]
                batched.swap(torch.tensor([a]), torch.tensor([b]))
                scalar[a], scalar[b] = scalar[b], scalar[a]
                sizes[a], sizes[b] = sizes[b], sizes[a]
        means = batched.mean(torch.arange(n)).tolist()
        assert means == pytest.approx([rolling.mean for rolling in scalar], rel=1e-6, abs=1e-6)


def test_updates_happen_in_place_and_touch_only_the_rows_named() -> None:
    batched = BatchedRollingEntropy(3, [2, 4, 3])
    storage = batched._values.data_ptr()
    batched.push(torch.tensor([2, 0]), torch.tensor([1.0, 3.0]))
    batched.push(torch.tensor([2]), torch.tensor([2.0]))
    assert batched._values.data_ptr() == storage
    assert batched.mean(torch.tensor([0, 1, 2])).tolist() == [3.0, 0.0, 1.5]
    batched.reset([2])
    assert batched.mean(torch.tensor([0, 1, 2])).tolist() == [3.0, 0.0, 0.0]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RollingEntropy(0)
    with pytest.raises(ValueError, match="at least 1"):
        BatchedRollingEntropy(2, [3, 0])
    with pytest.raises(ValueError, match="each of the 2 rows"):
        BatchedRollingEntropy(2, [3])
    batched = BatchedRollingEntropy(2, 3)
    with pytest.raises(ValueError, match="one window"):
        batched.reset([0, 1], window=[2])
    with pytest.raises(ValueError, match="one history"):
        batched.reset([0, 1], history=[[1.0]])


def test_units() -> None:
    assert bits_to_nats(1.0) == pytest.approx(0.693147, abs=1e-6)
    assert nats_to_bits(bits_to_nats(1.75)) == pytest.approx(1.75)
    torch.testing.assert_close(nats_to_bits(torch.tensor([0.693147, 0.0])), torch.tensor([1.0, 0.0]))
