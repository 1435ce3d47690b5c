"""AEPO: reference figures, what becomes of the auxiliary rows, and that entropy goes where it is told to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch, rollouts
from waver.entropy import shannon_entropy
from waver.training.rl import Batch, Draw, Recipe, RecipeError, Rollouts, make_recipe
from waver.training.rl.methods.aepo import Parameters, taken, temperature, weights
from waver.training.rl.toy import train

Z = torch.tensor([2, 1, 0, -1], dtype=F64)
ALL, TWO = torch.ones(4, dtype=F64), torch.tensor([0, 1, 1, 0], dtype=F64)


def close(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), atol=1e-6, rtol=0)


def gradient(t: float, right: torch.Tensor) -> torch.Tensor:
    """Compute the effect of one state's auxiliary rows on the logits: E over actions drawn at temperature t of R grad
    log pi."""
    score = torch.eye(4, dtype=F64) - Z.softmax(-1)
    return ((Z / t).softmax(-1) * right) @ score


@pytest.mark.parametrize(
    ("t", "expected", "change"),
    [
        (0.8, [0.074421, -0.031076, -0.028180, -0.015165], -0.00328941),
        (1.0, [0.0] * 4, 0.0),
        (1.2, [-0.057596, 0.017930, 0.023597, 0.016069], 0.00252229),
    ],
)
def test_hot_rows_flatten_and_cold_ones_sharpen(t: float, expected: list[float], change: float) -> None:
    close(gradient(t, ALL), expected)
    close(gradient(t, ALL), (Z / t).softmax(-1) - Z.softmax(-1))
    close(shannon_entropy(Z + 0.1 * gradient(t, ALL)) - shannon_entropy(Z), change)


def test_cooling_does_not_cool_where_only_unlikely_answers_are_right() -> None:
    found = [float(shannon_entropy(Z + 0.1 * gradient(t, TWO)) - shannon_entropy(Z)) for t in (0.8, 1.0, 1.2)]
    assert found == pytest.approx([0.00756689, 0.00926827, 0.01046523], abs=1e-8)


@pytest.mark.parametrize(
    ("mode", "expected"), [("switch", [1.2, 1.2, 1.2, 0.8, 0.8]), ("proportional", [1.2, 1.15, 1.0, 0.88, 0.8])]
)
def test_temperature(mode: Any, expected: list[float]) -> None:
    p = Parameters(mode=mode)
    assert [temperature(h, 0.5, p) for h in (0.10, 0.35, 0.50, 0.62, 1.30)] == pytest.approx(expected)


def test_weights_of_rows() -> None:
    auxiliary = torch.arange(16) >= 12
    close(weights(torch.ones(16, 3, dtype=F64), auxiliary, 4, 1 / 64)[:, 0], [1.333333] * 12 + [0.0625] * 4)


def test_weights_make_the_loss_of_the_paper() -> None:
    """Rows of unequal length, and three auxiliary rows drawn of which one was right."""
    loss = torch.arange(12, dtype=F64).view(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=F64)
    w = weights(mask, torch.tensor([False, False, True]), 3, 0.5)
    found = (loss * w * mask).sum() / mask.sum()
    close(found, (0 + 1 + 2 + 3 + 4) / 5 + 0.5 * (8.5 / 3))
    assert weights(mask, torch.ones(3) > 0, 3, 0.5).isfinite().all()


def test_rows_that_the_release_replaces() -> None:
    assert [taken(75, True, 60), taken(75, False, 60), taken(10, True, 60)] == [30, 60, 5]


def rows(correct: list[int], draw: list[int], **given: Any) -> Batch:
    fields: dict[str, Any] = {"correct": correct, "draw": draw, "reward": correct, "group": draw} | given
    return batch(torch.ones(len(draw), 2), **fields)


def started(entropy: float, **parameters: Any) -> Recipe:
    """A recipe whose first step had that entropy, everywhere."""
    recipe = make_recipe("grpo", [{"name": "aepo", **parameters}])
    assert len(recipe.plan()) == 1
    first = rows([1, 0], [0, 0], entropy=torch.full((2, 2), entropy))
    assert recipe.keep(first).all()
    recipe.control(recipe.advantages(first))
    return recipe


def test_the_first_step_sets_the_target() -> None:
    recipe = started(1.0)
    assert recipe.state_dict()["aepo"]["target"] == pytest.approx(0.8)
    assert recipe.plan() == (Draw(), Draw(share=0.25, temperature=0.8))
    assert started(1.0, target=1.0).plan()[1].temperature == 1.2
    assert started(1.0, target=0.9, mode="proportional").plan()[1].temperature == pytest.approx(0.9)


def test_only_right_auxiliary_rows_are_kept_and_pushed_up() -> None:
    recipe = started(1.0, alpha=0.5)
    recipe.plan()
    drawn = rollouts(torch.ones(6, 2), correct=[1, 0, 1, 0, 0, 1], draw=[0, 0, 1, 1, 1, 2], reward=torch.zeros(6))
    keep = recipe.keep(drawn)
    assert keep.tolist() == [True, True, True, False, False, True]  # draw 2 is another method's
    b = rows([1, 0, 1], [0, 0, 1], entropy=[[0.5, 0.5], [0.5, 0.5], [9, 9]])
    step, metrics = recipe.control(recipe.advantages(b))
    close(step.advantage[2], [1, 1])
    assert step.advantage[0, 0] > 0 > step.advantage[1, 0]
    close(step.weight[:, 0], [3 / 2, 3 / 2, 0.5 * 3 / 3])
    assert metrics["aepo/entropy"] == 0.5  # of the main rows
    assert metrics["aepo/auxiliary_rows"] == 1
    nothing, metrics = recipe.control(recipe.advantages(rows([1, 0], [0, 0])))
    assert metrics["aepo/auxiliary_rows"] == 0
    close(nothing.weight, torch.ones(2, 2))


def test_padding_does_not_move_the_thermostat() -> None:
    recipe = make_recipe("grpo", ["aepo"])
    recipe.plan()
    recipe.control(batch([[1, 1, 0], [1, 0, 0]], entropy=[[1, 2, 50], [3, 50, 50]]))
    assert recipe.state_dict()["aepo"]["entropy"] == pytest.approx(2.0)


@pytest.mark.parametrize(("entropy", "replaced"), [(0.5, 2), (2.0, 1)])
def test_replacing(entropy: float, replaced: int) -> None:
    """Right rows of the mixed auxiliary group take the place of the first main ones: both, or one when cooling."""
    recipe = started(entropy, target=1.0, replace_rows=True)
    recipe.plan()
    correct = [1, 0, 1, 0, 1, 1, 1, 1]
    b = rows(correct, [0] * 3 + [1] * 5, group=[0] * 3 + [1] * 3 + [2] * 2)  # group 2 is all right: no advantage
    assert recipe.keep(b).all()
    step, metrics = recipe.control(recipe.advantages(b))
    left = (step.lengths > 0).nonzero().squeeze(1).tolist()
    assert left == [*range(replaced, 3), *range(4, 4 + replaced)]
    assert metrics["aepo/auxiliary_rows"] == replaced
    assert (step.weight[step.mask > 0] == 1).all()
    assert (step.advantage[4 : 4 + replaced] == 1).all()


def test_it_goes_on_after_a_checkpoint() -> None:
    recipe, other = started(1.0), make_recipe("grpo", ["aepo"])
    other.load_state_dict(recipe.state_dict())
    assert other.plan() == recipe.plan() != make_recipe("grpo", ["aepo"]).plan()


def test_refusals() -> None:
    with pytest.raises(RecipeError, match=r"aepo\.cold"):
        make_recipe("grpo", [{"name": "aepo", "cold": 1.1}])
    with pytest.raises(RecipeError, match="the switch only"):
        make_recipe("grpo", [{"name": "aepo", "replace_rows": True, "mode": "proportional"}])


class Table:
    """32 prompts, 8 positions, 10 tokens; two positions matter, at each of which 4 tokens are right."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        keys = torch.stack([torch.randperm(8, generator=self.random)[:2] for _ in range(32)])
        self.free = torch.ones(32, 8).scatter(1, keys, 0.0) > 0
        order = torch.rand(32, 8, 10, generator=self.random).argsort(-1)
        self.right = (order < 4) | self.free.unsqueeze(-1)
        easy = torch.nn.functional.one_hot(torch.randint(10, (32, 8), generator=self.random), 10)
        self.z = torch.randn(32, 8, 10, generator=self.random) * 0.5 + 5 * easy * self.free.unsqueeze(-1)
        self.z.requires_grad_()

    def step(self, recipe: Recipe) -> float:
        """One step of four full-batch updates; the entropy before it."""
        z, parts = self.z.detach(), []
        for i, draw in enumerate(recipe.plan()):
            prompts = torch.arange(32).repeat_interleave(16)
            pi = (z / draw.temperature).softmax(-1)[prompts]
            tokens = torch.multinomial(pi.flatten(0, 1), 1, generator=self.random).view(-1, 8)
            correct = self.right[prompts].gather(-1, tokens.unsqueeze(-1)).all(1).squeeze(-1)
            parts.append((prompts, tokens, correct, torch.full_like(prompts, i)))
        prompts, tokens, correct, draws = (torch.cat(column) for column in zip(*parts, strict=True))
        rows = Rollouts(
            mask=torch.ones(tokens.shape),
            reward=correct.float(),
            group=prompts + 32 * draws,
            correct=correct,
            draw=draws,
            truncated=torch.zeros_like(correct),
            tokens=tokens,
        )
        keep = recipe.keep(rows)
        rows, prompts = rows.select(keep), prompts[keep]

        def logprob() -> torch.Tensor:
            chosen = rows.tokens.unsqueeze(-1)
            return self.z[prompts].log_softmax(-1).gather(-1, chosen).squeeze(-1)

        b = Batch.of(rows, old_logprob=logprob(), entropy=shannon_entropy(z[prompts]))
        b = recipe.control(recipe.advantages(b))[0].counted()
        for _ in range(4):
            loss, _ = recipe.loss(replace(b, logprob=logprob()))
            (grad,) = torch.autograd.grad(loss, self.z)
            with torch.no_grad():
                self.z -= 30 * grad
        return float(shannon_entropy(z).mean())

    def accuracy(self) -> float:
        return float((self.z.detach().softmax(-1) * self.right).sum(-1).prod(1).mean())


def test_entropy_goes_where_it_is_told() -> None:
    """To 0.6 of 0.85 at the start, within 0.01 on average over the last 60 of 150 steps; plain GRPO goes on to 0.40."""
    table = Table(0)
    recipe = make_recipe("grpo", [{"name": "aepo", "target": 0.6, "alpha": 0.5, "share": 1.0}], dual_clip=None)
    held = [table.step(recipe) for _ in range(150)]
    assert held[0] > 0.7
    assert sum(abs(h - 0.6) for h in held[-60:]) / 60 < 0.03
    assert table.accuracy() > 0.98


def test_it_trains() -> None:
    run = train(make_recipe("grpo", ["aepo"]), 0, steps=3, microbatches=2)
    assert "aepo/temperature" not in run.steps[0]
    assert run.steps[2]["aepo/temperature"] in (0.8, 1.2)
