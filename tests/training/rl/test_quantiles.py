"""The quantile of a step: torch's own figures, beyond the size at which torch refuses."""

from __future__ import annotations

import pytest
import torch

from waver.training.rl.methods.earl import thresholds
from waver.training.rl.methods.steer import scale_of
from waver.training.rl.quantiles import quantile


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("q", [0.0, 0.25, 0.8, 0.95, 1.0])
def test_it_is_that_of_torch(size: int, q: float) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    torch.testing.assert_close(quantile(values, q), values.quantile(q))


def test_there_is_none_of_nothing() -> None:
    assert quantile(torch.zeros(0), 0.5).isnan()


def test_a_step_may_have_more_than_two_to_the_24th_tokens() -> None:
    """At which torch refuses. The place in the middle is exact where its float32 is not."""
    values = torch.zeros(1, 2**24 + 3)
    values[0, : 2**23 + 1] = -1.0
    with pytest.raises(RuntimeError, match="too large"):
        values.flatten().quantile(0.5)
    assert quantile(values, 0.5) == 0
    assert quantile(values[:, 1:], 0.5) == 0


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_methods_take_it_over_the_valid_tokens_of_a_step(share: float) -> None:
    g = torch.Generator().manual_seed(0)
    values, mask = torch.rand(3, 9, generator=g), torch.rand(3, 9, generator=g) > 0.3
    expected = values[mask].quantile(1 - share)
    torch.testing.assert_close(thresholds(values, mask, share, "batch"), expected.expand(3, 1))
    torch.testing.assert_close(scale_of(values, mask, 0.0, 1 - share), expected)
