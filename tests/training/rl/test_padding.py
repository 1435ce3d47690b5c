"""NaN that a model leaves at padding: no mean, no loss and no gradient of any method knows of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.rl.test_reads import EVERY, rows
from waver.training.rl import Batch, Recipe, load


def step(name: str, given: dict[str, Any], padding: float) -> tuple[dict[str, float], float, torch.Tensor]:
    """Metrics of a step, and loss and gradient of an update, with this value wherever the mask is 0."""
    recipe = Recipe("grpo", [load(name, **given)], dynamic_sampling=False, kl=0.1)
    plain = rows(recipe)
    outside = plain.mask == 0

    def soil(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(outside, padding)

    batch = Batch.of(
        plain,
        old_logprob=soil(plain.old_logprob),
        entropy=soil(plain.entropy),
        ref_logprob=soil(plain.reference),
        measures={key: soil(value) for key, value in plain.measures.items()},
    )
    recipe.plan()
    batch, metrics = recipe.control(recipe.advantages(batch.select(recipe.keep(batch))))
    logprob = (batch.old_logprob - 0.1).requires_grad_()
    live = {m.name: batch.entropy.masked_fill(batch.mask == 0, padding) for m in recipe.measures if m.live}
    spoiled = torch.where(batch.mask == 0, padding, logprob)
    loss, of_update = recipe.loss(replace(batch, logprob=spoiled, live=live))
    loss.backward()
    assert logprob.grad is not None
    return metrics | of_update, float(loss.detach()), logprob.grad


@pytest.mark.parametrize(("name", "given"), EVERY)
def test_padding_poisons_nothing(name: str, given: dict[str, Any]) -> None:
    metrics, loss, gradient = step(name, given, math.nan)
    clean, expected, its_gradient = step(name, given, 0.0)
    assert metrics == pytest.approx(clean)
    assert all(math.isfinite(value) for value in metrics.values())
    assert loss == pytest.approx(expected)
    torch.testing.assert_close(gradient, its_gradient)
