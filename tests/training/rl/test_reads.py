"""Declared reads of methods: the hooks of each read the declared fields of the rows and nothing more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64
from waver.training.rl import Batch, Recipe, RecipeError, Rollouts, load, names
from waver.training.rl.adapters.verl import advantage, policy_loss
from waver.training.rl.unknown import READABLE, Unknown

ROWS, WIDTH = 8, 6
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ares": [{"beta": 0.0}, {"form": "paper"}],
    "attention_entropy": [{"subset": subset} for subset in ("random", "anchors", "explorers", "entropy")],
    "entrocraft": [{"mode": "released", "low": 5.0, "high": 6.0}],
    "hapo": [{"per_update": True}],
    "spine": [{"trained": 2}],
    "steer": [{"scope": "step"}],
}
"""Parameters under which a method may read something else."""
EVERY = [(name, {}) for name in names()] + [(name, given) for name, many in VARIANTS.items() for given in many]


def rows(recipe: Recipe) -> Batch:
    """Two groups of four rows of a policy, right and wrong in each, with every measure that the recipe wants."""
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(ROWS, WIDTH, generator=g, dtype=F64)
    reward = torch.tensor([1, -1, 1, -1] * 2, dtype=F64)
    drawn = Rollouts(
        mask=(torch.arange(WIDTH) < torch.tensor([[6], [4], [5], [3]] * 2)).to(F64),
        reward=reward,
        group=torch.tensor([0] * 4 + [1] * 4),
        correct=reward > 0,
        draw=torch.zeros(ROWS, dtype=torch.long),
        truncated=torch.zeros(ROWS, dtype=torch.bool),
        tokens=torch.zeros(ROWS, WIDTH, dtype=torch.long),
        step=1,
        total_steps=3,
    )
    return Batch.of(
        drawn,
        old_logprob=-noise,
        entropy=noise,
        ref_logprob=-noise,
        measures={m.name: noise for m in recipe.measures if m.old},
    )


def run(recipe: Recipe, batch: Batch) -> None:
    """All that a trainer asks of a recipe in a step."""
    recipe.plan()
    batch = batch.select(recipe.keep(batch))
    batch, _ = recipe.control(recipe.advantages(batch))
    live = {m.name: torch.full_like(batch.mask, 0.5) for m in recipe.measures if m.live}
    recipe.loss(replace(batch, logprob=batch.old_logprob - 0.1, live=live))


@pytest.mark.parametrize(("name", "given"), EVERY)
def test_a_method_reads_what_it_declares(name: str, given: dict[str, Any]) -> None:
    for field in READABLE:
        recipe = Recipe("grpo", [load(name, **given)], dynamic_sampling=False)
        batch = replace(rows(recipe), **{field: Unknown.because(f"{field} is read")})
        if field in recipe.reads:
            with pytest.raises(ValueError, match=f"{field} is read"):
                run(recipe, batch)
        else:
            run(recipe, batch)


@pytest.mark.parametrize("given", [{}, {"beta": 0}, {"beta": 0, "form": "paper"}])
def test_verl_refuses_by_what_is_declared(given: dict[str, Any]) -> None:
    recipe = Recipe("grpo", [load("ares", **given)], dynamic_sampling=False)
    for register in (policy_loss, advantage):
        with pytest.raises(RecipeError, match="ares reads correct, entropy of the rows"):
            register(recipe)


def test_what_is_not_declared_is_not_made_up() -> None:
    """A method of somebody's own that says nothing of what it reads: no nan, no zero, but a sentence."""
    silent = replace(load("ares", beta=0), reads=frozenset())
    estimate = advantage(Recipe("grpo", [silent], dynamic_sampling=False))
    with pytest.raises(ValueError, match="entropy of the rows, which verl does not hand over"):
        estimate(token_level_rewards=torch.rand(4, 3), response_mask=torch.ones(4, 3), index=["a", "a", "b", "b"])


def test_settings_declare_too() -> None:
    assert Recipe("dapo").reads == {"correct", "truncated"}
    assert Recipe("dapo", [load("aepo")]).readers("correct") == ("dynamic_sampling", "aepo")
    assert not Recipe("grpo").reads


def test_an_unknown_is_named_wherever_it_is_read() -> None:
    unknown = Unknown.because("nobody said")
    assert unknown[torch.tensor([0, 2])] is unknown
    for read in (lambda: unknown + 1, lambda: 1 / unknown, lambda: torch.cat([unknown]), lambda: unknown.shape):
        with pytest.raises(ValueError, match="nobody said"):
            read()
