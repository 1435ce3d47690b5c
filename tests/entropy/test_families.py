"""Rényi and Tsallis entropies: limits, orders, gradients, masked rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from waver.entropy import renyi_entropy, shannon_entropy, tsallis_entropy

ORDERS = [0.0, 1e-6, 0.3, 0.5, 0.9, 0.95, 0.999, 1 - 1e-9, 1.0, 1 + 1e-9, 1.001, 1.05, 1.1, 1.5, 2.0, 7.0, 300.0]

rows = st.lists(st.floats(-30, 30) | st.just(-math.inf), min_size=1, max_size=30)
orders = st.floats(0, 50) | st.floats(0.8, 1.2) | st.sampled_from([0.0, 1.0, 2.0, math.inf])


def renyi_reference(row: np.ndarray, alpha: float) -> float:
    """log Σ p^α / (1 - α) in extended precision."""
    logprobs = special.log_softmax(row.astype(np.longdouble))
    if alpha == 1:
        return float(-(np.exp(logprobs) * logprobs).sum())
    return float(np.log(np.exp(np.longdouble(alpha) * logprobs).sum()) / (1 - np.longdouble(alpha)))


@pytest.mark.parametrize("alpha", ORDERS)
def test_against_extended_precision(alpha: float) -> None:
    logits = 3 * torch.randn(4, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    renyi = np.array([renyi_reference(row, alpha) for row in logits.numpy()])
    tolerance = 1e-8 if abs(alpha - 1) < 1e-6 else 1e-10  # the reference itself divides by almost 0 there
    np.testing.assert_allclose(renyi_entropy(logits, alpha).numpy(), renyi, atol=tolerance)
    np.testing.assert_allclose(renyi_entropy(logits.float(), alpha).numpy(), renyi, atol=1e-4)
    tsallis = renyi if alpha == 1 else np.expm1((1 - alpha) * renyi) / (1 - alpha)
    np.testing.assert_allclose(tsallis_entropy(logits, alpha).numpy(), tsallis, rtol=1e-8)
    np.testing.assert_allclose(tsallis_entropy(logits.float(), alpha).numpy(), tsallis, rtol=1e-4)


def test_known_values() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    square_sum = 0.25 + 0.0625 + 2 * 0.015625
    assert renyi_entropy(logits, 0).item() == pytest.approx(math.log(4))
    assert renyi_entropy(logits, 2).item() == pytest.approx(-math.log(square_sum))
    assert renyi_entropy(logits, math.inf).item() == pytest.approx(math.log(2))
    assert tsallis_entropy(logits, 0).item() == pytest.approx(3)
    assert tsallis_entropy(logits, 2).item() == pytest.approx(1 - square_sum)
    assert tsallis_entropy(logits, 3).item() == pytest.approx((1 - 0.125 - 0.015625 - 2 * 0.001953125) / 2)


@pytest.mark.parametrize("function", [renyi_entropy, tsallis_entropy])
def test_order_one_is_shannon_and_is_approached_from_both_sides(function) -> None:
    logits = 4 * torch.randn(3, 2000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(function(logits, 1.0), shannon_entropy(logits), atol=0, rtol=0)
    for order in (1 - 1e-7, 1 + 1e-7):
        torch.testing.assert_close(function(logits, order), shannon_entropy(logits), atol=1e-4, rtol=0)


def test_min_entropy_is_approached() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    expected = -logits.log_softmax(-1).amax(-1)
    for alpha in (1e5, 1e30, math.inf):
        torch.testing.assert_close(renyi_entropy(logits, alpha), expected, atol=1e-3, rtol=0)


@given(rows, orders, orders)
def test_never_grows_with_its_order(row: list[float], one: float, other: float) -> None:
    logits = torch.tensor(row, dtype=torch.float64)
    low, high = sorted((one, other))
    support = max(sum(value > -math.inf for value in row), 1)
    assert renyi_entropy(logits, high).item() <= renyi_entropy(logits, low).item() + 1e-9
    assert renyi_entropy(logits, high).item() >= -1e-9
    assert renyi_entropy(logits, low).item() <= math.log(support) + 1e-9


@given(rows, st.floats(0, 50), st.floats(-100, 100), st.randoms())
def test_order_of_tokens_and_shift_do_not_matter(row: list[float], order: float, shift: float, random) -> None:
    logits = torch.tensor(row, dtype=torch.float64)
    shuffled = torch.tensor(random.sample(row, len(row)), dtype=torch.float64) + shift
    for function in (renyi_entropy, tsallis_entropy):
        torch.testing.assert_close(function(shuffled, order), function(logits, order), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("function", [renyi_entropy, tsallis_entropy])
def test_masked_one_hot_and_empty_rows(function, order: float) -> None:
    inf = math.inf
    sure = torch.tensor([[-inf, 3.5, -inf], [-inf, -inf, -inf]])
    assert function(sure, order).tolist() == [0.0, 0.0]
    logits = torch.randn(20, generator=torch.Generator().manual_seed(3))
    masked = torch.cat([logits, torch.full((7,), -inf)])
    torch.testing.assert_close(function(masked, order), function(logits, order))
    scale = torch.tensor([1e4, 0.0, -1e4])
    assert function(scale, order).isfinite()


@pytest.mark.parametrize("order", [*ORDERS, math.inf])
def test_gradients(order: float) -> None:
    inf = math.inf
    functions = [renyi_entropy] if order == inf else [renyi_entropy, tsallis_entropy]
    for function in functions:
        logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, order), (logits,))
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            table = [[-inf, 1.0, 2.0], [-inf, -inf, 2.0], [-inf, -inf, -inf], [1e4, 0.0, -1e4]]
            masked = torch.tensor(table, dtype=dtype, requires_grad=True)
            function(masked, order).sum().backward()
            assert masked.grad is not None
            assert masked.grad.isfinite().all()
            assert (masked.grad[masked == -inf] == 0).all()


@pytest.mark.parametrize("function", [renyi_entropy, tsallis_entropy])
def test_half_precision_and_shapes(function) -> None:
    logits = torch.randn(2, 3, 40).to(torch.bfloat16)
    result = function(logits, 2.0)
    assert result.dtype == torch.float32
    assert result.shape == (2, 3)
    torch.testing.assert_close(result, function(logits.double(), 2.0).float())


@pytest.mark.parametrize("order", [-1.0, -1e-9, math.nan])
@pytest.mark.parametrize("function", [renyi_entropy, tsallis_entropy])
def test_negative_orders_are_refused(function, order: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        function(torch.zeros(3), order)


def test_tsallis_needs_a_finite_order() -> None:
    with pytest.raises(ValueError, match="finite"):
        tsallis_entropy(torch.zeros(3), math.inf)
