"""The fused forms measure what the plain functions do: as written, compiled, and in one sweep of a CPU's core."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.entropy import cpu_kernels, fastest_measure, measure, shannon_entropy
from waver.entropy.fused import ONE_CORE

CPU = torch.device("cpu")


def swift(logits: torch.Tensor, most: int | None = None) -> list[torch.Tensor]:
    """The fastest form."""
    found = fastest_measure(logits.shape[1], CPU, most or len(logits))(logits.numpy())
    return [torch.from_numpy(each) for each in found]


@settings(deadline=None)  # Numba compiles once
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 9000), st.floats(0, 60), st.booleans())
def test_measures_equal_the_plain_functions(seed: int, rows: int, vocabulary: int, scale: float, mask: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * scale
    if mask:
        logits[:, 1::2] = -math.inf
        logits[-1] = -math.inf
    for form in (measure, swift):
        entropy, log_partition, peak = form(logits)
        torch.testing.assert_close(entropy, shannon_entropy(logits), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(peak, logits.amax(-1))
        some = peak > -math.inf
        exact = (logits - peak[:, None])[some].logsumexp(-1)
        torch.testing.assert_close(log_partition[some], exact, rtol=1e-5, atol=1e-6)
        assert (log_partition[~some] == -math.inf).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocabulary", [1_280, 128_000])
def test_the_fastest_form_measures_the_same_and_leaves_the_logits_alone(vocabulary: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (1, 2, ONE_CORE // vocabulary, 7):
            logits = torch.randn(rows, vocabulary) * 4
            logits[:, :5] = -math.inf
            given = logits.clone()
            for found, exact in zip(swift(logits, most=7), measure(logits.double()), strict=True):
                torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-5)
            assert torch.equal(logits, given)
    finally:
        torch.set_num_threads(before)


def test_rows_that_are_sure_broken_or_empty() -> None:
    vocabulary = 6000
    logits = torch.zeros(6, vocabulary)
    logits[0] = -math.inf
    logits[0, 5000] = 3.0  # one token is all there is, in the last block
    logits[1, 4500] = math.nan
    logits[2] = math.nan
    logits[3, 10] = math.inf
    logits[4] = -math.inf
    logits[5, ::7] = -1e30  # masked by a number
    entropy, log_partition, _ = swift(logits)
    left = vocabulary - len(range(0, vocabulary, 7))
    torch.testing.assert_close(
        entropy, torch.tensor([0, math.nan, math.nan, math.nan, 0, math.log(left)]), equal_nan=True
    )
    torch.testing.assert_close(log_partition[[0, 4, 5]], torch.tensor([0, -math.inf, math.log(left)]))


def test_rows_need_not_lie_side_by_side() -> None:
    padded = torch.randn(3, 2200)
    logits = padded[:, :2100]
    for found, exact in zip(swift(logits), measure(logits.double()), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_likeliest_token_of_a_sure_row_keeps_its_log_probability() -> None:
    """Beside a peak of 40 float32 has steps of 4e-6, and what is left for the others is far less."""
    logits = torch.zeros(1, 3)
    logits[0, 1] = 40.0
    for form in (measure, swift):
        assert form(logits)[1].item() == pytest.approx(0.0, abs=1e-16)
    logits[0, 1] = 12.0
    for form in (measure, swift):
        assert form(logits)[1].item() == pytest.approx(2 * math.exp(-12), rel=0.01)


def test_where_there_is_no_place_to_keep_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    doubled = cpu_kernels._compiled("int64(int64)")(lambda x: 2 * x)
    assert doubled(21) == 42
