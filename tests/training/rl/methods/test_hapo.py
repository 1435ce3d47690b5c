"""HAPO: the signal and what temperature, advantage and clip make of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from waver.entropy import shannon_entropy
from waver.entropy.uncertainty import Statistics
from waver.training.rl import Recipe, RecipeError, load, make_recipe
from waver.training.rl.loss import clipped_loss
from waver.training.rl.methods.hapo import (
    AdaptiveTemperature,
    clip_bounds,
    redistributed,
    token_group_advantage,
)

H = torch.tensor([[0.01, 0.1, 0.5, 1.0], [0.02, 0.2, 0.4, 77.0]], dtype=F64)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=F64)
SIGNAL = [-1, -0.411408, 0, 1, -0.822816, -0.234224, -0.057040]


def tensor(x: Any) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


def known() -> Statistics:
    return Statistics.of(H[MASK > 0])


def test_the_signal() -> None:
    s = known()
    assert [s.q, s.sigma, s.s_pos, s.s_neg] == pytest.approx([-0.693147, 2.057225, 2.967948, 0.525872], abs=2e-6)
    assert s.signal(H[MASK > 0]).tolist() == pytest.approx(SIGNAL, abs=1e-6)
    assert s.signal(H[MASK > 0], legacy_abs=True).tolist() == pytest.approx([abs(x) for x in SIGNAL], abs=1e-6)


def test_equal_entropies_and_zero_entropies_stay_finite() -> None:
    for flat in (torch.full((5,), 0.3), torch.zeros(5)):
        assert Statistics.of(flat).signal(flat).tolist() == pytest.approx([0] * 5, abs=1e-6)


def test_winsorising_keeps_one_outlier_from_rescaling_all() -> None:
    h = torch.linspace(0.1, 1, 200, dtype=F64)
    h[0] = 0
    assert Statistics.of(h).signal(h)[100] > Statistics.of(h, winsorise=0.01).signal(h)[100]


@pytest.mark.parametrize("sign", [1, -1])
def test_clip_and_advantage_follow_the_signal(sign: int) -> None:
    signal, ratio = tensor([0.6, 0.6, -0.5, -0.5]), tensor([1.30, 1.05, 1.30, 1.05])
    low, high = clip_bounds(signal, 0.2, 0.28)
    assert low.tolist() == pytest.approx([0.2, 0.2, 0.3, 0.3])
    assert high.tolist() == pytest.approx([0.448, 0.448, 0.28, 0.28])
    found = redistributed(sign * torch.ones(4, dtype=F64), signal, ratio, (low, high))
    assert found.tolist() == pytest.approx([sign * x for x in (1.6, 1, 1, 0.5)])


def test_the_inside_of_the_clip_is_open_and_may_be_that_of_the_settings() -> None:
    """A ratio on the bound is outside; 1.2 is inside the adapted clip of 0.448 and outside that of 0.28."""
    one, signal = torch.ones(1, dtype=F64), tensor([0.6])
    assert redistributed(one, signal, tensor([1.25]), (0.25, 0.5)).item() == pytest.approx(1.6)
    assert redistributed(one, signal, tensor([0.875]), (0.25, 0.5)).item() == pytest.approx(1.6)
    assert redistributed(one, signal, tensor([1.2]), clip_bounds(signal, 0.2, 0.28)).item() == 1
    assert redistributed(one, signal, tensor([1.2]), (0.2, 0.28)).item() == pytest.approx(1.6)
    assert redistributed(one, tensor([-1.0]), one, (0.2, 0.28)).item() == 0


def test_the_advantage_sums_to_0_over_the_tokens_of_a_group() -> None:
    lengths = torch.tensor([2, 3, 5, 10])
    mask = (torch.arange(10) < lengths.unsqueeze(1)).to(F64)
    found, fell = token_group_advantage(tensor([1, 1, 0, 0]), mask, torch.zeros(4))
    assert found.tolist() == pytest.approx([1.7320508] * 2 + [-0.5773503] * 2, abs=5e-6)
    assert (found.unsqueeze(1) * mask).sum().item() == pytest.approx(0, abs=1e-9)
    assert not fell.any()


def test_a_group_with_a_huge_advantage_falls_back_to_grpo_and_no_other() -> None:
    mask = torch.zeros(4, 40, dtype=F64)
    mask[[0, 2], :1], mask[1], mask[3, :2] = 1, 1, 1
    reward, group = tensor([1, 0, 1, 0]), torch.tensor([0, 0, 1, 1])
    found, fell = token_group_advantage(reward, mask, group, fallback=7)
    assert found[0].item() == pytest.approx(6.3245, abs=1e-3)
    assert not fell.any()
    found, fell = token_group_advantage(reward, mask, group)
    assert fell.tolist() == [True, True, False, False]
    assert found[:2].tolist() == pytest.approx([0.7071058, -0.7071058], abs=1e-6)
    assert found[2:].tolist() == pytest.approx([2**0.5, -(0.5**0.5)], abs=1e-5)


def test_groups_without_a_signal_have_none() -> None:
    mask = torch.ones(4, 3)
    found, fell = token_group_advantage(tensor([0.1, 0.1, 0.1, 1]), mask, torch.tensor([0, 0, 0, 1]))
    assert found.tolist() == [0] * 4
    assert not fell.any()


def test_the_loss() -> None:
    a, signal = tensor([[1.7320508, 1.7320508, -0.5773503, -0.5773503]]), tensor([[0.6, -0.5, 0.6, -0.5]])
    moved = tensor([[0.35, 0.05, -0.30, -0.30]])
    bounds = clip_bounds(signal, 0.2, 0.28)
    scaled = redistributed(a, signal, moved.exp(), bounds)
    assert scaled[0].tolist() == pytest.approx([2.7713, 0.8660, -0.9238, -0.5774], abs=1e-4)
    losses = clipped_loss(moved.exp(), scaled, *bounds, 10)
    assert losses[0].tolist() == pytest.approx([-3.9326, -0.9104, 0.7390, 0.4277], abs=1e-4)
    rows = batch(torch.ones(1, 4), logprob=moved, advantage=a, measures={"hapo_signal": signal})
    assert make_recipe("dapo", ["hapo"]).loss(rows)[0].item() == pytest.approx(-0.9191, abs=1e-4)
    assert make_recipe("dapo", dual_clip=10).loss(rows)[0].item() == pytest.approx(-0.7785, abs=1e-4)


@pytest.mark.parametrize(
    ("p", "temperature", "after"),
    [
        ([0.25] * 4, 1.1, 1.386294),
        ([0.97, 0.01, 0.01, 0.01], 0.972075, 0.151014),
        ([0.5, 0.3, 0.15, 0.05], 1.1, 1.174636),
    ],
)
def test_the_temperature_of_the_next_draws(p: list[float], temperature: float, after: float) -> None:
    """The third entropy by hand, from temperature 1.1: sum of p^(1/1.1) normalised."""
    rule = AdaptiveTemperature(known(), 0.1)
    logits = tensor([p]).log() + 3
    assert rule.temperature(logits).item() == pytest.approx(temperature, abs=1e-6)
    assert shannon_entropy(rule(logits)).item() == pytest.approx(after, abs=1e-6)
    assert rule == AdaptiveTemperature(known(), 0.1)
    assert hash(rule) == hash(AdaptiveTemperature(known(), 0.1))


def test_a_temperature_never_leaves_its_span() -> None:
    rule = AdaptiveTemperature(known(), 0.3)
    logits = torch.stack([torch.zeros(50), torch.arange(50) * 9.0])
    assert rule.temperature(logits).squeeze(1).tolist() == pytest.approx([1.3, 0.7])


def test_uncertain_tokens_open_and_certain_ones_close() -> None:
    """4,000 logit vectors: the mean entropy of the upper group rises by 0.03, that of the lower falls by 0.011; with
    the sign of the released code both rise."""
    g = torch.Generator().manual_seed(0)
    scale = torch.where(
        torch.rand(4000, generator=g) < 0.2,
        0.3 + 1.2 * torch.rand(4000, generator=g),
        2 + 4 * torch.rand(4000, generator=g),
    )
    logits = torch.randn(4000, 50, generator=g, dtype=F64) * scale.unsqueeze(1)
    before = shannon_entropy(logits)
    s = Statistics.of(before)
    upper = s.signal(before) > 0
    changes = [shannon_entropy(AdaptiveTemperature(s, 0.1, legacy)(logits)) - before for legacy in (False, True)]
    up, down = (float(changes[0][group].mean()) for group in (upper, ~upper))
    assert up == pytest.approx(0.030, abs=0.006)
    assert down == pytest.approx(-0.011, abs=0.004)
    assert float(changes[1][~upper].mean()) > 0.005


def step_of(recipe: Any, entropy: torch.Tensor = H) -> Any:
    rows = batch(MASK, reward=[1, 0], correct=[True, False], entropy=entropy, logprob=torch.full((2, 4), 0.05))
    return recipe.control(recipe.advantages(rows))


def test_one_step_hands_four_numbers_to_the_next_and_to_a_checkpoint() -> None:
    recipe = make_recipe("dapo", ["hapo"])
    assert recipe.plan()[0].logits is None
    _, metrics = step_of(recipe)
    assert metrics["hapo/q"] == pytest.approx(-0.693147, abs=1e-6)
    assert metrics["hapo/fallback"] == 0
    expected = AdaptiveTemperature(known(), 0.1)
    assert recipe.plan()[0].logits == expected
    again = make_recipe("dapo", ["hapo"])
    again.load_state_dict(recipe.state_dict())
    assert again.plan()[0].logits == expected
    assert make_recipe("dapo", [{"name": "hapo", "span": 0}]).plan()[0].logits is None


def test_two_rules_for_the_draws_are_refused() -> None:
    mine = load("hapo")
    first = replace(mine, name="first", advantage=None, step_controller=None, policy_loss=None, report=None, state={})
    recipe = Recipe("dapo", [first, mine])
    step_of(recipe)
    with pytest.raises(ValueError, match="set span=0"):
        recipe.plan()


def test_the_signal_does_not_depend_on_micro_batches() -> None:
    for each in (False, True):
        recipe = make_recipe("dapo", [{"name": "hapo", "per_update": each}])
        step, _ = step_of(recipe)
        step = replace(step, live={"entropy": H * 2 + 0.1 * H.square()})
        whole = recipe.loss(step)[0].item()
        parts = sum(recipe.loss(part)[0].item() for part in recipe.begin_update(step).split(2))
        assert parts == pytest.approx(whole)


def test_padding_does_not_count() -> None:
    recipe = make_recipe("dapo", ["hapo"])
    one, _ = step_of(recipe)
    other, _ = step_of(recipe, torch.where(MASK > 0, H, 1e-3))
    assert recipe.loss(one)[0].item() == recipe.loss(other)[0].item()


@pytest.mark.parametrize("bad", [{"span": 0.5}, {"pivot": 1}, {"strength": 2}, {"neutral": "paper"}])
def test_refusals(bad: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"hapo\."):
        load("hapo", **bad)
