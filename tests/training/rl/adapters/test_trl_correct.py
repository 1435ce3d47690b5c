"""Right rows in TRL: by a reward function and a least reward; a run that cannot know them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from tests.training.rl.adapters.sums import made, reward
from tests.training.rl.rows import rollouts
from waver.training.rl import Batch, Method, Recipe, RecipeError, load
from waver.training.rl.adapters.trl_correct import Correct, make_judge
from waver.training.rl.adapters.trl_trainer import RecipeTrainer
from waver.training.rl.methods.ares import HARD, difficulty

NAMES = ("form", "accuracy")
VERILOG = torch.tensor([[0.1], [0.3], [0.3], [1.0]])
"""Rewards of four designs: three compile or are right in part, one is right."""


def form(completions: list[Any], **_: Any) -> list[float]:
    """1 for any answer at all."""
    return [1.0] * len(completions)


def test_partial_rewards_are_not_right() -> None:
    """DAPO keeps the group, and ARES calls its prompt hard, not easy."""
    recipe = Recipe("dapo", [load("ares")])
    right = make_judge(1.0, ["passes_testbench"], recipe)(VERILOG)
    assert right.tolist() == [False, False, False, True]
    assert recipe.keep(rollouts(torch.ones(4, 1), correct=right)).all()
    assert (difficulty(right, torch.zeros(4)) == HARD).all()


def test_the_named_function_decides_whatever_its_place() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, torch.nan]])
    rule = Correct(1.0, reward="accuracy")
    assert make_judge(rule, NAMES, Recipe("dapo"))(scores).tolist() == [False, True, False]
    assert make_judge(lambda s: s.nansum(1) >= 1, NAMES, Recipe())(scores).all()


@pytest.mark.parametrize(
    ("correct", "names", "recipe", "reason"),
    [
        (None, ["one"], Recipe("dapo"), "dynamic_sampling must know which rows are right, .*the least reward"),
        (None, NAMES, Recipe("grpo", [load("aepo")]), "aepo must know.*form, accuracy"),
        (1.0, NAMES, Recipe("dapo"), "2 reward functions .form, accuracy.: say which"),
        (Correct(1.0), NAMES, Recipe(), "say which"),
        (Correct(1.0, reward="speed"), NAMES, Recipe(), "'speed'; there are form, accuracy"),
        (Correct(1.0, reward="one"), ["one", "one"], Recipe(), "'one'"),
    ],
)
def test_what_cannot_be_known_is_refused(correct: Any, names: Any, recipe: Recipe, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        make_judge(correct, names, recipe)


def test_the_trainer_refuses_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="dynamic_sampling must know which rows are right"):
        made(RecipeTrainer, tmp_path, recipe="dapo")


def test_the_trainer_tells_form_from_accuracy(tmp_path: Path) -> None:
    seen: list[Batch] = []
    method = Method(name="one", paper="none", summary="", step_controller=lambda batch: seen.append(batch) or batch)  # type: ignore[func-returns-value]
    trainer = made(
        RecipeTrainer,
        tmp_path,
        recipe=Recipe("grpo", [method]),
        reward_funcs=[form, reward],
        correct=Correct(1.0, reward="reward"),
        max_steps=1,
    )
    trainer.train()
    assert torch.equal(seen[0].correct, seen[0].reward > 1)
    assert 0 < trainer.state.log_history[0]["accuracy"] < 1


def test_accuracy_is_not_logged_where_it_is_not_known(tmp_path: Path) -> None:
    trainer = made(RecipeTrainer, tmp_path, max_steps=1)
    trainer.train()
    assert "accuracy" not in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["length"] > 0
