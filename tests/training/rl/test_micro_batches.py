"""The gradient of an update is that of all its rows, in however many micro-batches they come: for every method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64
from tests.training.rl.test_reads import EVERY, ROWS, WIDTH, rows
from waver.training.rl import Batch, Recipe, load

MORE: list[tuple[str, dict[str, Any]]] = [
    ("steer", {"form": "linear"}),
    ("steer", {"quantile": 0.5}),
    ("clip_cov", {"share": 0.2, "low": 0.01}),
    ("kl_cov", {"share": 0.2}),
    ("siren", {"anchor": 0.3, "coefficient": 1.0}),
]


def live_step(recipe: Recipe) -> Batch:
    """Rows after the hooks of their step under a policy that has moved, with gradient."""
    batch, _ = recipe.control(recipe.advantages(rows(recipe)))
    g = torch.Generator().manual_seed(1)

    def noise() -> torch.Tensor:
        return torch.rand(ROWS, WIDTH, generator=g, dtype=F64)

    logprob = (batch.old_logprob + 0.6 * (noise() - 0.5)).clamp(max=-0.01).requires_grad_()
    live = {m.name: noise().requires_grad_() for m in recipe.measures if m.live}
    return replace(batch, logprob=logprob, live=live)


def gradients(recipe: Recipe, batch: Batch, parts: int) -> list[torch.Tensor]:
    state = recipe.state_dict()
    leaves = [batch.logprob, *batch.live.values()]
    begun = recipe.begin_update(batch)
    for leaf in leaves:
        leaf.grad = None
    for part in begun.split(parts):
        recipe.loss(part)[0].backward()
    recipe.load_state_dict(state)  # the next one draws what this one drew
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


@pytest.mark.parametrize(("name", "given"), EVERY + MORE)
def test_micro_batches_change_no_gradient(name: str, given: dict[str, Any]) -> None:
    recipe = Recipe("grpo", [load(name, **given)], dynamic_sampling=False)
    batch = live_step(recipe)
    whole = gradients(recipe, batch, 1)
    assert any(part.any() for part in whole)
    for parts in (2, 3, ROWS):
        for one, other in zip(whole, gradients(recipe, batch, parts), strict=True):
            torch.testing.assert_close(other, one, atol=1e-12, rtol=0)
