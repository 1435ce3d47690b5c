"""Entrocraft: which rows are kept, what they are divided by, and a band that entropy follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from waver.training.rl import Batch, Recipe, RecipeError, load, make_recipe
from waver.training.rl.advantages import advantages
from waver.training.rl.loss import clipped_loss
from waver.training.rl.methods.entrocraft import bound, direction, kept_rows

REWARD = [1, 1, 1, -1, -1, -1, -1, -1]
BAND = {"low": 0.5, "high": 0.7, "low_end": 0.5, "high_end": 0.7}


def rows(entropy: float, **given: Any) -> Batch:
    """Eight rows of four tokens."""
    correct = [r > 0 for r in given.get("reward", REWARD)]
    given = {"reward": REWARD, "correct": correct, "entropy": torch.full((8, 4), entropy), **given}
    return batch(torch.ones(8, 4), **given)


def controlled(entropy: float, mode: str = "paper", **given: Any) -> tuple[Recipe, Batch, dict[str, float]]:
    recipe = make_recipe("grpo", [{"name": "entrocraft", "mode": mode, **BAND}])
    return recipe, *recipe.control(recipe.advantages(rows(entropy, **given)))


@pytest.mark.parametrize(
    ("entropy", "m", "kept"),
    [(0.3, -1, [3, 4, 5, 6, 7]), (0.55, 0, list(range(8))), (0.9, 1, [0, 1, 2]), (0.5, 0, list(range(8)))],
)
def test_rows_of_the_sign_that_moves_entropy_back_are_kept(entropy: float, m: int, kept: list[int]) -> None:
    _, found, metrics = controlled(entropy)
    assert metrics["entrocraft/direction"] == m
    assert found.mask.any(1).nonzero().squeeze(1).tolist() == kept
    assert metrics["entrocraft/kept"] == len(kept) / 8
    expected = [1.2076136] * 3 + [-0.7245681] * 5
    assert found.advantage[:, 0].tolist() == pytest.approx(expected, abs=2e-6)


def test_a_bound_is_inside() -> None:
    assert [direction(h, 0.5, 0.7) for h in (0.5, 0.7, 0.4999, 0.7001)] == [0, 0, -1, 1]


@pytest.mark.parametrize(("mode", "loss"), [("paper", 0.7245681), ("released", 0.625)])
def test_kept_rows_alone_are_divided_by(mode: str, loss: float) -> None:
    """The same rows over all eight would give 0.4528551."""
    recipe, found, _ = controlled(0.3, mode)
    assert recipe.loss(found)[0].item() == pytest.approx(loss, abs=2e-6)
    assert sum(recipe.loss(part)[0].item() for part in found.counted().split(3)) == pytest.approx(loss, abs=2e-6)


@pytest.mark.parametrize(
    ("schedule", "ends", "progress", "band"),
    [
        ("linear", ((0.6, 0.4), (0.7, 0.5)), 0, (0.6, 0.7)),
        ("linear", ((0.6, 0.4), (0.7, 0.5)), 0.25, (0.55, 0.65)),
        ("linear", ((0.6, 0.4), (0.7, 0.5)), 1, (0.4, 0.5)),
        ("cosine", ((0.6, 0.1), (0.7, 0.2)), 0.25, (0.5267767, 0.6267767)),
        ("cosine", ((0.6, 0.1), (0.7, 0.2)), 1, (0.1, 0.2)),
    ],
)
def test_the_band_moves(schedule: Any, ends: Any, progress: float, band: Any) -> None:
    assert [bound(*end, progress, schedule) for end in ends] == pytest.approx(band, abs=1e-7)


def test_the_band_is_that_of_the_step() -> None:
    recipe = make_recipe("grpo", ["entrocraft"])
    _, metrics = recipe.control(recipe.advantages(rows(0.57, step=1, total_steps=4)))
    assert [metrics[f"entrocraft/{n}"] for n in ("low", "high", "direction")] == pytest.approx([0.55, 0.65, 0])
    _, metrics = recipe.control(recipe.advantages(rows(0.57, step=4, total_steps=4)))
    assert metrics["entrocraft/direction"] == 1


@pytest.mark.parametrize("entropy", [0.3, 0.55, 0.9])
def test_equal_rewards_keep_every_row_and_teach_nothing(entropy: float) -> None:
    recipe, found, _ = controlled(entropy, reward=[1] * 8)
    assert found.mask.all()
    assert recipe.loss(found)[0].item() == 0


def test_padding_and_auxiliary_rows_have_no_say_in_the_entropy() -> None:
    mask = torch.ones(8, 4)
    mask[:, 3] = 0
    entropy = torch.full((8, 4), 0.6)
    entropy[:, 3], entropy[0] = torch.nan, 50.0
    made = batch(
        mask, reward=REWARD, correct=[r > 0 for r in REWARD], entropy=entropy.nan_to_num(99), draw=[1] + [0] * 7
    )
    recipe = make_recipe("grpo", [{"name": "entrocraft", **BAND}])
    found, metrics = recipe.control(recipe.advantages(made))
    assert metrics["entrocraft/direction"] == 0
    assert torch.equal(found.mask, made.mask)


def test_a_shaped_row_is_judged_by_its_sum_and_not_by_padding() -> None:
    advantage = torch.tensor([[1.0, -2, 0], [1, -0.5, -9]])
    assert kept_rows(advantage, torch.tensor([[1.0, 1, 1], [1, 1, 0]]), -1).tolist() == [True, False]


def test_the_log_probability_is_that_of_kept_rows() -> None:
    old = torch.full((8, 4), -1.0)
    old[:3] = -3.0
    assert controlled(0.3, old_logprob=old)[2]["entrocraft/logprob"] == -1
    assert controlled(0.9, old_logprob=old)[2]["entrocraft/logprob"] == -3


def test_no_row_left_is_nothing_selected() -> None:
    """A group of one has its reward for an advantage: all of the wrong sign leave nothing to learn from."""
    recipe, found, metrics = controlled(0.3, group=list(range(8)), reward=[1] * 8)
    assert metrics["entrocraft/kept"] == metrics["selected"] == found.counted().totals["selected"] == 0
    assert recipe.loss(found)[0].item() == 0


def test_the_released_estimator_takes_the_bare_reward_and_leaves_all_rows_in() -> None:
    _, above, _ = controlled(0.9, "released")
    assert above.advantage[:, 0].tolist() == [1] * 3 + [0] * 5
    _, below, _ = controlled(0.3, "released")
    assert below.advantage[:, 0].tolist() == [0] * 3 + [-1] * 5
    assert above.mask.all()
    assert below.mask.all()
    _, inside, _ = controlled(0.6, "released")
    assert inside.advantage[0, 0].item() == pytest.approx(1.2076136, abs=2e-6)


def test_the_released_estimator_refuses_rewards_that_would_silently_disable_it() -> None:
    with pytest.raises(ValueError, match="reward them with -1"):
        controlled(0.3, "released", reward=[1, 1, 1, 0, 0, 0, 0, 0], correct=[r > 0 for r in REWARD])


def test_a_band_upside_down_is_refused() -> None:
    with pytest.raises(RecipeError, match="above the upper one"):
        load("entrocraft", low=0.8)


def bandit(controlled: bool, seed: int) -> tuple[float, float]:
    """Sixteen softmax bandits of twenty arms, six updates a step: the mean distance of the entropy from the band, and
    the success at the end."""
    g = torch.Generator().manual_seed(seed)
    prompts, arms, group, steps = 16, 20, 8, 150
    logits = torch.randn(prompts, arms, generator=g, dtype=F64)
    rates = 0.4 + 0.4 * torch.rand(prompts, arms, generator=g, dtype=F64)
    distance = []
    for step in range(1, steps + 1):
        p = logits.softmax(-1)
        entropy = float(-(p * p.log()).sum(-1).mean())
        low, high = bound(2.2, 1.4, step / steps), bound(2.4, 1.6, step / steps)
        if step > steps / 5:
            distance.append(max(low - entropy, entropy - high, 0))
        arm = torch.multinomial(p, group, replacement=True, generator=g)
        hit = torch.rand(arm.shape, generator=g) < rates.gather(1, arm)
        index = torch.arange(prompts).repeat_interleave(group)
        advantage = advantages(2 * hit.double().flatten() - 1, index).view(prompts, group)
        keep = torch.ones(prompts * group, dtype=torch.bool)
        if controlled:
            m = direction(entropy, low, high)
            keep = kept_rows(advantage.view(-1, 1), torch.ones(prompts * group, 1), m)
        old = p.log().gather(1, arm)
        for _ in range(6):
            logits.requires_grad_()
            ratio = (logits.log_softmax(-1).gather(1, arm) - old).exp()
            loss = (clipped_loss(ratio, advantage) * keep.view_as(ratio)).sum() / keep.sum().clamp(min=1)
            (slope,) = torch.autograd.grad(loss, logits)
            logits = (logits - 0.5 * prompts * slope).detach()
    return sum(distance) / len(distance), float((logits.softmax(-1) * rates).sum(-1).mean())


def test_the_entropy_follows_the_band() -> None:
    """At least ten times closer to the band than GRPO, and the mean success of two seeds within 0.03."""
    plain, steered = ([bandit(c, seed) for seed in (0, 1)] for c in (False, True))
    for (far, _), (near, _) in zip(plain, steered, strict=True):
        assert far > 0.25
        assert near < far / 10
    assert sum(s for _, s in steered) / 2 == pytest.approx(sum(s for _, s in plain) / 2, abs=0.03)
