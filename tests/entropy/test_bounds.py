"""The bounds contain the truth, cannot be tightened, and refuse what is no top-k."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from waver.entropy import entropy_bounds, entropy_estimate, shannon_entropy


def test_by_hand() -> None:
    """0.5 and 0.2 of six tokens: 0.3 is left, packed as 0.2 + 0.1, or spread as 4 times 0.075."""
    lower, upper = entropy_bounds([math.log(0.5), math.log(0.2)], vocab_size=6)
    assert lower.item() == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.2, 0.2, 0.1)))
    assert upper.item() == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.2, *[0.075] * 4)))
    assert entropy_estimate([math.log(0.5), math.log(0.2)], 6).item() == pytest.approx((lower + upper).item() / 2)


@given(st.lists(st.floats(-12, 12), min_size=1, max_size=30), st.data())
def test_contain_the_truth(row: list[float], data: st.DataObject) -> None:
    logits = torch.tensor(row, dtype=torch.float64)
    k = data.draw(st.integers(1, len(row)))
    truth = shannon_entropy(logits).item()
    lower, upper = entropy_bounds(logits.log_softmax(-1).topk(k).values, len(row))
    assert lower.item() <= truth + 1e-9
    assert truth <= upper.item() + 1e-9
    assert upper.item() <= math.log(len(row)) + 1e-9
    if k == len(row):
        assert lower.item() == pytest.approx(truth, abs=1e-9)
        assert upper.item() == pytest.approx(truth, abs=1e-9)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.floats(0.0, 0.95), st.integers(0, 200))
def test_are_attained(weights: list[float], rest: float, others: int) -> None:
    """There is a distribution with these top k for which each bound is its entropy."""
    assume(others > 0 or rest == 0)
    top = torch.tensor(weights, dtype=torch.float64)
    top = top / top.sum() * (1 - rest)
    least = top.min().item()
    assume(rest <= others * least)
    full = math.floor(rest / least)
    packed = torch.tensor([least] * full + [max(rest - full * least, 0.0)], dtype=torch.float64)
    even = torch.full((others,), rest / max(others, 1), dtype=torch.float64)
    lower, upper = entropy_bounds(top.log(), len(weights) + others)
    assert lower.item() == pytest.approx(shannon_entropy(torch.cat([top, packed]).log()).item(), abs=1e-6)
    assert upper.item() == pytest.approx(shannon_entropy(torch.cat([top, even]).log()).item(), abs=1e-6)


@given(st.lists(st.floats(-12, 12), min_size=2, max_size=30), st.data())
def test_any_tokens_bound_the_entropy_too(row: list[float], data: st.DataObject) -> None:
    logits = torch.tensor(row, dtype=torch.float64)
    known = data.draw(st.lists(st.integers(0, len(row) - 1), min_size=1, unique=True))
    lower, upper = entropy_bounds(logits.log_softmax(-1)[known], len(row), ranked=False)
    truth = shannon_entropy(logits).item()
    assert lower.item() - 1e-9 <= truth <= upper.item() + 1e-9


def test_an_unlikely_token_is_not_the_top() -> None:
    """A draw from the tail, on its own, says little: that it was the likeliest would be a contradiction."""
    with pytest.raises(ValueError, match="likelier"):
        entropy_bounds([math.log(0.01)], 20)
    lower, upper = entropy_bounds([math.log(0.01)], 20, ranked=False)
    assert lower.item() == pytest.approx(-0.01 * math.log(0.01) - 0.99 * math.log(0.99))
    assert upper.item() == pytest.approx(-0.01 * math.log(0.01) - 0.99 * math.log(0.99 / 19))


def test_tighten_as_more_is_known() -> None:
    logprobs = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(-1)
    logprobs = logprobs.sort(descending=True).values
    gaps = [(upper - lower).item() for lower, upper in (entropy_bounds(logprobs[:k], 1000) for k in (1, 5, 20, 100))]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > gaps[-1] > 0


def test_order_shape_and_type() -> None:
    logprobs = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    top = logprobs.topk(5).values
    lower, upper = entropy_bounds(top, 40)
    assert lower.shape == upper.shape == (2, 3)
    assert lower.dtype == upper.dtype == torch.float32
    flipped = entropy_bounds(top.flip(-1), 40)
    torch.testing.assert_close(flipped, (lower, upper))
    torch.testing.assert_close(entropy_bounds(top[1, 2].double().tolist(), 40)[0].float(), lower[1, 2])
    assert entropy_estimate(top.to(torch.bfloat16), 40).dtype == torch.float32


def test_rounded_log_probabilities_are_taken() -> None:
    """Upstreams round: the mass may come out a little over 1, and the rest a little over what fits."""
    lower, upper = entropy_bounds([math.log(0.6) + 1e-4, math.log(0.4) + 1e-4], vocab_size=100)
    assert 0 < lower.item() <= upper.item() < 0.7
    lower, upper = entropy_bounds([round(-math.log(1000), 6)] * 20, vocab_size=1000)
    assert lower.item() == pytest.approx(math.log(1000), abs=1e-3)
    assert upper.item() == pytest.approx(math.log(1000), abs=1e-3)


def test_certain_and_barred_tokens() -> None:
    for row in ([0.0], [0.0, -math.inf], [0.0, -9999.0]):
        lower, upper = entropy_bounds(row, vocab_size=50)
        assert (lower.item(), upper.item()) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("top", "vocab_size", "sentence"),
    [
        ([], 10, "between 1 and 10"),
        ([-1.0] * 4, 3, "between 1 and 3"),
        ([math.log(0.9), math.log(0.3)], 10, "exceed 1"),
        ([math.nan], 10, "NaN"),
        ([math.log(0.5)], 1, "not the 1 largest of 1"),
        ([math.log(0.5), math.log(0.01)], 12, "not the 2 largest of 12"),
    ],
)
def test_what_is_no_top_k_is_refused(top: list[float], vocab_size: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        entropy_bounds(top, vocab_size)
