"""Shannon entropy and varentropy against float64 references and their own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from waver.entropy import nats_to_bits, shannon_entropy, varentropy

REAL_VOCAB = 151_936

rows = st.lists(st.floats(-1e4, 1e4) | st.just(-math.inf), min_size=1, max_size=40)


def reference(logits: torch.Tensor) -> np.ndarray:
    """Entropy in nats of the same numbers, in float64, by scipy."""
    return np.asarray(stats.entropy(special.softmax(logits.double().numpy(), axis=-1), axis=-1))


def test_the_papers_numbers_in_bits() -> None:
    """arXiv 2502.06833: the entropy is of the raw logits, in bits there and in nats here."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    assert shannon_entropy(logits).item() == pytest.approx(0.9475370, abs=1e-6)
    assert nats_to_bits(shannon_entropy(logits).item()) == pytest.approx(1.3670069, abs=1e-6)
    assert nats_to_bits(shannon_entropy(logits / 2).item()) == pytest.approx(1.7962280, abs=1e-6)
    assert nats_to_bits(shannon_entropy(torch.full((4,), 7.0)).item()) == pytest.approx(2.0, abs=1e-6)
    assert nats_to_bits(shannon_entropy(torch.tensor([0.5, 0.25, 0.125, 0.125]).log()).item()) == pytest.approx(1.75)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 1e2, 1e4])
def test_float32_is_within_1e4_nats_of_float64_at_a_real_vocabulary(scale: float) -> None:
    logits = scale * torch.randn(4, REAL_VOCAB, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(shannon_entropy(logits).numpy(), reference(logits), atol=1e-4, rtol=0)
    shifted = logits + 1e3 * scale
    np.testing.assert_allclose(shannon_entropy(shifted).numpy(), reference(shifted), atol=1e-4, rtol=0)


def test_heavy_tail_of_unlikely_tokens_is_not_lost() -> None:
    """One token with half the mass and 150k that share the rest: the tail is where naive float32 sums go wrong."""
    logits = torch.zeros(REAL_VOCAB)
    logits[17] = math.log(REAL_VOCAB - 1)
    expected = math.log(2) + 0.5 * math.log(REAL_VOCAB - 1)
    assert shannon_entropy(logits).item() == pytest.approx(expected, abs=1e-4)
    assert varentropy(logits).item() == pytest.approx((0.5 * math.log(REAL_VOCAB - 1)) ** 2, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [shannon_entropy, varentropy])
def test_half_precision_logits_are_computed_in_float32(function, dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(3, 32_000, generator=torch.Generator().manual_seed(1))).to(dtype)
    result = function(logits)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, function(logits.double()).float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("function", [shannon_entropy, varentropy])
def test_shapes_and_types(function) -> None:
    logits = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    result = function(logits)
    assert result.shape == (2, 3, 5)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result[1, 2, 4], function(logits[1, 2, 4]))
    assert function(logits.float()).dtype == torch.float32
    assert function(torch.empty(0, 7)).shape == (0,)


def test_the_input_is_left_alone() -> None:
    logits = torch.randn(4, 9)
    before = logits.clone()
    shannon_entropy(logits)
    varentropy(logits)
    torch.testing.assert_close(logits, before, atol=0, rtol=0)


def test_rows_without_doubt_are_exactly_zero() -> None:
    inf = math.inf
    logits = torch.tensor(
        [
            [-inf, 3.5, -inf],  # one token can occur
            [1e4, 0.0, -1e4],  # the others underflow
            [-inf, -inf, -inf],  # none can: nothing to be unsure of
        ]
    )
    assert shannon_entropy(logits).tolist() == [0.0, 0.0, 0.0]
    assert varentropy(logits).tolist() == [0.0, 0.0, 0.0]


def test_a_broken_row_stays_alone() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.nan, 0.0], [-math.inf, -math.inf], [1.0, 1.0]])
    result = shannon_entropy(logits)
    assert result.isnan().tolist() == [False, True, False, False]
    assert result[[0, 3]].tolist() == pytest.approx([math.log(2)] * 2)


def test_masked_tokens_are_as_if_absent() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    masked = torch.cat([logits, torch.full((6, 30), -math.inf)], dim=-1)[:, torch.randperm(80)]
    torch.testing.assert_close(shannon_entropy(masked), shannon_entropy(logits))
    torch.testing.assert_close(varentropy(masked), varentropy(logits))


@given(rows)
def test_bounded_by_the_support_and_never_nan(row: list[float]) -> None:
    logits = torch.tensor(row, dtype=torch.float64)
    support = max(sum(value > -math.inf for value in row), 1)
    assert -1e-12 <= shannon_entropy(logits).item() <= math.log(support) + 1e-9
    assert varentropy(logits).item() >= 0
    assert -1e-6 <= shannon_entropy(logits.float()).item() <= math.log(support) + 1e-5


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=40), st.floats(-100, 100), st.randoms())
def test_order_and_shift_do_not_matter(row: list[float], shift: float, random) -> None:
    shuffled = random.sample(row, len(row))
    for function in (shannon_entropy, varentropy):
        expected = function(torch.tensor(row, dtype=torch.float64))
        torch.testing.assert_close(function(torch.tensor(shuffled, dtype=torch.float64) + shift), expected)


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=40))
def test_against_scipy(row: list[float]) -> None:
    logits = torch.tensor(row, dtype=torch.float64)
    probs = special.softmax(np.array(row))
    surprisal = -special.log_softmax(np.array(row))
    mean = (probs * surprisal).sum()
    assert shannon_entropy(logits).item() == pytest.approx(float(reference(logits)), abs=1e-9)
    assert varentropy(logits).item() == pytest.approx((probs * (surprisal - mean) ** 2).sum(), abs=1e-9)


@pytest.mark.parametrize("function", [shannon_entropy, varentropy])
def test_gradients_match_finite_differences(function) -> None:
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    assert torch.autograd.gradcheck(function, (logits,))
    assert torch.autograd.gradgradcheck(function, (logits,))


def test_gradient_is_the_closed_form() -> None:
    """dH/dl_i = -p_i (log p_i + H)."""
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(4), requires_grad=True)
    entropy = shannon_entropy(logits)
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    logprobs = logits.log_softmax(-1)
    torch.testing.assert_close(gradient, -logprobs.exp() * (logprobs + entropy.unsqueeze(-1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("function", [shannon_entropy, varentropy])
def test_gradients_of_masked_rows_are_finite(function, dtype: torch.dtype) -> None:
    inf = math.inf
    table = [[-inf, 1.0, 2.0], [-inf, -inf, 2.0], [-inf, -inf, -inf], [6e4, 0.0, -6e4], [0.0, 1.0, 2.0]]
    logits = torch.tensor(table, dtype=dtype, requires_grad=True)
    function(logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[logits == -inf] == 0).all()
    assert (logits.grad[1:4] == 0).all()
    assert (logits.grad[4] != 0).all()
    pair = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    function(pair).backward()
    assert pair.grad is not None
    torch.testing.assert_close(logits.grad[0, 1:], pair.grad)


@pytest.mark.parametrize("function", [shannon_entropy, varentropy])
def test_what_is_not_logits_is_refused(function) -> None:
    with pytest.raises(ValueError, match="last axis"):
        function(torch.tensor(1.0))
    with pytest.raises(ValueError, match="last axis"):
        function(torch.empty(3, 0))
    with pytest.raises(TypeError, match="floating point"):
        function(torch.ones(3, dtype=torch.long))
