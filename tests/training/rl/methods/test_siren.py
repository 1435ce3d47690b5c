"""SIREN: the entropy inside the nucleus, the peaks of a row, and the pull back to the first step's value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, Recipe, RecipeError, load, make_recipe
from waver.training.rl.methods.siren import NucleusEntropy, mean_peak, peaks
from waver.training.rl.toy import train

NAN = float("nan")
ENTROPY = torch.tensor([[0, 0.1, 0.2, 1.0, 0.5], [0.3, 0, 0.9, NAN, NAN]], dtype=F64)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=F64)


@pytest.mark.parametrize(
    ("p", "nucleus", "released", "full"),
    [
        ([0.35, 0.3, 0.2, 0.1, 0.05], 1.073384, 0.690186, 1.430562),
        ([0.5, 0.25, 0.15, 0.06, 0.04], 0.980990, 0.636514, 1.275275),
        ([0.6, 0.3, 0.05, 0.03, 0.02], 0.636514, 0, 1.000911),
        ([0.85, 0.1, 0.03, 0.01, 0.01], 0, 0, 0.565700),
    ],
)
def test_the_entropy_of_the_nucleus(p: list[float], nucleus: float, released: float, full: float) -> None:
    logits = torch.tensor(p, dtype=F64)[[3, 0, 4, 2, 1]].log() + 7
    assert NucleusEntropy(0.8)(logits).item() == pytest.approx(nucleus, abs=1e-6)
    assert NucleusEntropy(0.8, released=True)(logits).item() == pytest.approx(released, abs=1e-6)
    assert NucleusEntropy(1.0)(logits).item() == pytest.approx(full, abs=1e-6)
    assert shannon_entropy(logits).item() == pytest.approx(full, abs=1e-6)


def test_the_tail_outside_the_nucleus_has_no_say() -> None:
    p = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.04], dtype=F64)
    logits = p.log().requires_grad_()
    entropy = NucleusEntropy(0.8)(logits)
    (slope,) = torch.autograd.grad(entropy, logits)
    assert slope[3:].tolist() == pytest.approx([0, 0], abs=1e-15)
    assert slope[:3].abs().min() > 1e-3
    moved = p.log() + torch.tensor([0, 0, 0, 0.01, -0.01], dtype=F64)
    assert NucleusEntropy(0.8)(moved).item() == pytest.approx(entropy.item(), abs=1e-12)
    certain = torch.tensor([50.0, 0, 0], requires_grad=True)
    NucleusEntropy(0.8, released=True)(certain).backward()
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()


def test_at_most_so_many_tokens_are_considered() -> None:
    assert NucleusEntropy(1.0, cap=4)(torch.zeros(3, 100)).tolist() == pytest.approx([1.386294] * 3, abs=1e-5)


def test_peaks_of_a_row_without_its_padding() -> None:
    assert peaks(ENTROPY, MASK, 0.8).nonzero().tolist() == [[0, 3], [1, 2]]
    assert [ENTROPY[0].quantile(0.8).item(), ENTROPY[1, :3].quantile(0.8).item()] == pytest.approx([0.6, 0.66])
    assert mean_peak(ENTROPY, MASK, 0.8).item() == pytest.approx(0.95)


def test_a_row_that_keeps_nothing_counts_as_0_and_a_dropped_one_not() -> None:
    flat = ENTROPY.clone()
    flat[1] = 0.4
    assert mean_peak(flat, torch.ones_like(MASK), 0.8).item() == pytest.approx(1.0 / 2)
    flat[0, 3] = 0.95
    assert mean_peak(flat, MASK, 0.8).item() == pytest.approx(0.475)
    dropped = MASK * torch.tensor([[1.0], [0]])
    assert mean_peak(ENTROPY, dropped, 0.8).item() == pytest.approx(1.0)


def rows(live: torch.Tensor, old: torch.Tensor = ENTROPY) -> Batch:
    return batch(MASK, measures={"nucleus_entropy": old}, live={"nucleus_entropy": live})


@pytest.mark.parametrize(("anchor", "slope"), [(0.8, 7.5e-4), (1.1, -7.5e-4)])
def test_the_pull_to_the_anchor_from_both_sides(anchor: float, slope: float) -> None:
    recipe = make_recipe("grpo", [{"name": "siren", "anchor": anchor}])
    live = ENTROPY.clone().requires_grad_()
    step, metrics = recipe.control(recipe.advantages(rows(live)))
    loss, _ = recipe.loss(step)
    assert loss.item() == pytest.approx(1.125e-4)
    (found,) = torch.autograd.grad(loss, live)
    expected = torch.zeros_like(live)
    expected[0, 3] = expected[1, 2] = slope
    torch.testing.assert_close(found, expected)
    assert metrics["siren/anchor"] == anchor
    assert metrics["siren/kept"] == pytest.approx(2 / 8)


def test_the_anchor_is_that_of_the_first_step_and_outlives_a_checkpoint() -> None:
    recipe = make_recipe("grpo", ["siren"])
    recipe.control(recipe.advantages(rows(ENTROPY)))
    again = make_recipe("grpo", ["siren"])
    again.load_state_dict(recipe.state_dict())
    for r in (recipe, again):
        step, metrics = r.control(r.advantages(rows(ENTROPY * 0.5, ENTROPY * 0.5)))
        assert metrics["siren/anchor"] == pytest.approx(0.95)
        assert metrics["siren/entropy"] == pytest.approx(0.475)
        assert r.loss(step)[0].item() == pytest.approx(0.005 * 0.475**2)


def test_micro_batches_take_the_square_of_the_mean_of_all() -> None:
    """By themselves they would give (0.2^2 + 0.1^2) / 2."""
    recipe = make_recipe("grpo", [{"name": "siren", "anchor": 0.8, "coefficient": 1}])
    step, _ = recipe.control(recipe.advantages(rows(ENTROPY)))
    parts = sum(recipe.loss(part)[0].item() for part in recipe.begin_update(step).split(2))
    assert parts == pytest.approx(0.15**2)
    assert recipe.loss(step)[0].item() == pytest.approx(0.15**2)


def test_policy_loss_and_weights_stay_as_they_are() -> None:
    given: dict[str, Any] = {"reward": [1, 0], "logprob": torch.full((2, 5), 0.1)}
    measured = {"measures": {"nucleus_entropy": ENTROPY}, "live": {"nucleus_entropy": ENTROPY}}
    plain, held = Recipe("grpo"), make_recipe("grpo", ["siren"])
    alone, _ = plain.control(plain.advantages(batch(MASK, **given)))
    step, _ = held.control(held.advantages(batch(MASK, **given, **measured)))
    assert held.loss(step)[0].item() == pytest.approx(plain.loss(alone)[0].item())
    assert torch.equal(step.weight, alone.weight)


@pytest.mark.parametrize("bad", [{"mass": 0}, {"quantile": 1}, {"coefficient": -1}, {"anchor": -0.1}, {"cap": 1}])
def test_refusals(bad: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"siren\."):
        load("siren", **bad)


def test_on_the_toy_forks_stay_open_and_followers_do_not() -> None:
    plain, held = (
        train(make_recipe("grpo", methods), 0, steps=70)
        for methods in ([], [{"name": "siren", "coefficient": 0.1, "quantile": 0.75}])
    )
    assert held.end.fork_entropy > plain.end.fork_entropy + 0.3
    assert held.end.pairs > plain.end.pairs
    assert held.end.follower_entropy < 0.15
    assert held.end.entropy < held.start.entropy
