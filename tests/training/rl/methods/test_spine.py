"""SPINE and TTRL: the vote, the forks of a row, the band around their entropies, and what gets a gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch, rollouts
from waver.training.rl import RecipeError, load, make_recipe
from waver.training.rl.advantages import advantages
from waver.training.rl.methods.spine import band, boxed_answer, hinges, majority_reward, otsu_threshold, top_forks, vote
from waver.training.rl.toy import Task, train

H = torch.tensor([[0.02, 0.05, 1.5, 0.01, 0.1, 2.2, 0.03, 0.9, 0.04, 0.06]], dtype=F64)
ONES = torch.ones_like(H)
ANSWERS = ["4", "4", "5", None, "4", "7", "5", "4"]


def places(forks: torch.Tensor) -> list[int]:
    """Counted from 1, as the paper does."""
    return [t + 1 for _, t in forks.nonzero().tolist()]


@pytest.mark.parametrize(("share", "forks", "bounds"), [(0.2, [3, 6], (1.57, 1.85)), (0.4, [3, 5, 6, 8], (0.34, 1.2))])
def test_forks_and_band_of_the_first_version(share: float, forks: list[int], bounds: tuple[float, float]) -> None:
    found = top_forks(H, ONES, share)
    assert places(found) == forks
    assert [b.item() for b in band(H, found, "top")] == pytest.approx(bounds)


def test_hinges_of_the_first_version() -> None:
    forks = top_forks(H, ONES, 0.4)
    found = hinges(H, *band(H, forks, "top"), 1, 1)[forks]
    assert found.tolist() == pytest.approx([0.30, 0.24, 1.00, 0])
    assert found.mean().item() == pytest.approx(0.385)


def recipe_and_step(**parameters: Any) -> Any:
    recipe = make_recipe("grpo", [{"name": "spine", "kl": 0, **parameters}])
    live = H.clone().requires_grad_()
    logprob = torch.zeros_like(H, requires_grad=True)
    step, metrics = recipe.control(recipe.advantages(batch(ONES, entropy=H, reward=[1])))
    return recipe, replace(step, logprob=logprob, live={"entropy": live}, advantage=ONES), live, logprob, metrics


def test_forks_and_band_of_the_second_version() -> None:
    assert otsu_threshold(H, ONES).item() == pytest.approx(0.10855)
    forks = otsu_threshold(H, ONES) <= H
    assert places(forks) == [3, 6, 8]
    assert [b.item() for b in band(H, forks, "otsu")] == pytest.approx([0.61044, 1.5], abs=1e-5)
    recipe, step, live, logprob, metrics = recipe_and_step(band_low=0.1, band_high=0.1, band_over="all")
    loss, _ = recipe.loss(step)
    assert loss.item() == pytest.approx(-0.3 + 0.007)
    of_entropy, of_logprob = torch.autograd.grad(loss, (live, logprob))
    assert of_entropy[0].tolist() == pytest.approx([0.01 if t == 5 else 0 for t in range(10)])
    assert (of_logprob != 0).nonzero().tolist() == [[0, 2], [0, 5], [0, 7]]
    assert metrics["spine/forks"] == pytest.approx(0.3)
    assert metrics["spine/fork_entropy"] == pytest.approx(4.6 / 3)


def test_the_band_over_the_forks_is_that_many_times_larger() -> None:
    recipe, step, *_ = recipe_and_step(band_low=0.1, band_high=0.1)
    assert recipe.loss(step)[0].item() == pytest.approx(-0.3 + 0.07 / 3)


def test_equal_entropies_are_all_forks_and_inside_the_band() -> None:
    flat = torch.full_like(H, 0.7)
    forks = flat >= otsu_threshold(flat, ONES)
    assert forks.all()
    lower, upper = band(flat, forks, "otsu")
    assert lower.item() == pytest.approx(0.7 - 1e-6, abs=1e-9)
    assert not hinges(flat, lower, upper, 1, 1).any()


@pytest.mark.parametrize("selection", ["top", "otsu"])
def test_padding_is_no_fork_and_an_empty_row_has_none(selection: str) -> None:
    h = torch.cat([H, torch.full((1, 10), 9.0), H.flip(1) * 2])
    h[:, 8:] = 50.0
    mask = torch.cat([ONES, ONES * 0, ONES])
    mask[:, 8:] = 0
    recipe = make_recipe("grpo", [{"name": "spine", "kl": 0, "selection": selection}])
    rows = batch(mask, entropy=h, reward=[1, 1, 0], live={"entropy": h})
    step, _ = recipe.control(recipe.advantages(rows))
    assert not step.weight[mask == 0].any()
    alone, _ = recipe.control(recipe.advantages(batch(mask[:1, :8], entropy=h[:1, :8])))
    assert torch.equal(step.weight[:1, :8], alone.weight)
    for name in ("band_lower", "band_upper"):
        assert step.measures[name][0].item() == pytest.approx(alone.measures[name][0].item())
    whole = recipe.loss(step)[0].item()
    assert sum(recipe.loss(part)[0].item() for part in step.counted().split(3)) == pytest.approx(whole)


def test_ties_take_the_earlier_and_a_row_keeps_at_least_one() -> None:
    assert places(top_forks(torch.ones(1, 5), torch.ones(1, 5), 0.4)) == [1, 2]
    assert places(top_forks(torch.ones(1, 2), torch.ones(1, 2), 0.2)) == [1]


def test_the_reference_holds_the_forks_only() -> None:
    recipe = make_recipe("grpo", [{"name": "spine", "kl": 0.5, "band_low": 0, "band_high": 0}])
    assert recipe.needs_reference
    assert not make_recipe("grpo", [{"name": "spine", "kl": 0}]).needs_reference
    reference = torch.where(H >= 0.9, -1.0, -7.0)
    step, _ = recipe.control(recipe.advantages(batch(ONES, entropy=H, ref_logprob=reference)))
    loss, _ = recipe.loss(replace(step, live={"entropy": H}))
    assert loss.item() == pytest.approx(0.5 * 0.3678794)


def test_the_vote() -> None:
    found = vote(ANSWERS)
    assert (found.label, found.majority) == ("4", 0.5)
    assert found.reward == [1, 1, 0, 0, 1, 0, 0, 1]
    assert vote(ANSWERS, leave_one_out=True).reward == found.reward
    assert vote(["1", "1", "2", "2"], leave_one_out=True).reward == [0, 0, 0, 0]
    a = advantages(torch.tensor(found.reward, dtype=F64), torch.zeros(8))
    assert a.abs().tolist() == pytest.approx([0.9354126] * 8, abs=2e-6)


def test_ties_and_empty_votes() -> None:
    assert vote(["7", "3", None, "3", "7"]).label == "3"
    nothing = vote([None, None])
    assert (nothing.label, nothing.reward, nothing.majority) == (None, [0, 0], 0)
    assert vote(["2"] * 3).reward == [1] * 3
    assert vote(["0.5", "1/2", "0.5"], same=lambda a, b: eval(a) == eval(b)).reward == [1] * 3


def test_votes_of_groups_that_do_not_lie_side_by_side() -> None:
    group = torch.tensor([5, 9, 5, 9, 5, 9])
    assert majority_reward(["1", "2", "1", "1", "2", "2"], group).tolist() == [1, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("the answer is 4", None),
        (r"\boxed{4", None),
        (r"\boxed{ }", None),
    ],
)
def test_only_a_box_is_an_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


def test_more_rows_vote_than_are_learned_from() -> None:
    rows = rollouts(torch.ones(6, 2), group=[0, 1, 0, 1, 0, 0])
    assert make_recipe("grpo", [{"name": "spine", "trained": 2}]).keep(rows).tolist() == [True] * 4 + [False] * 2
    assert make_recipe("grpo", ["spine"]).keep(rows).all()


@pytest.mark.parametrize("bad", [{"selection": "v1"}, {"share": 0}, {"band_low": -1}, {"trained": 1}])
def test_refusals(bad: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"spine\."):
        load("spine", **bad)


def test_on_the_toy_the_vote_saturates_later() -> None:
    task = Task(rule="second", hint=0.45)

    def reward(tokens: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        right, answers = task.followers_right(tokens, prompts), task.answer(tokens)
        return majority_reward([str(int(a)) if r else None for a, r in zip(answers, right, strict=True)], prompts)

    spine = {"name": "spine", "selection": "top", "share": 0.25, "band_low": 0.1, "band_high": 0.1, "kl": 0}
    plain, banded = (
        train(make_recipe("grpo", methods), 0, task=task, reward=reward, steps=50) for methods in ([], [spine])
    )
    last = [sum(step["reward"] for step in run.steps[-10:]) / 10 for run in (plain, banded)]
    assert last[0] > 0.85
    assert last[1] < last[0] - 0.05
    assert banded.end.fork_entropy > plain.end.fork_entropy
