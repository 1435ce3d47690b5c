"""The fused form measures what the plain functions do, compiled or not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy import fastest, measure, shannon_entropy


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 200), st.floats(0, 60), st.booleans())
def test_measures_equal_the_plain_functions(seed: int, rows: int, vocabulary: int, scale: float, mask: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * scale
    if mask:
        logits[:, 1::2] = -math.inf
        logits[-1] = -math.inf
    for form in (measure, fastest(vocabulary, torch.device("cpu"))):
        entropy, norm, peak = form(logits)
        torch.testing.assert_close(entropy, shannon_entropy(logits), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm, logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(peak, logits.amax(-1))


@pytest.mark.parametrize("vocabulary", [1_280, 32_000])
def test_the_fastest_form_measures_the_same_and_leaves_the_logits_alone(vocabulary: int) -> None:
    form = fastest(vocabulary, torch.device("cpu"))
    for rows in (1, 2, 7):
        logits = torch.randn(rows, vocabulary) * 4
        logits[:, :5] = -math.inf
        before = logits.clone()
        for found, exact in zip(form(logits), measure(logits.double()), strict=True):
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
        assert torch.equal(logits, before)
