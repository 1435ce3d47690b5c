"""EARL: reference figures, the gate inside each response, and that it beats other gates of its size on the toy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from waver.training.rl import Batch, Method, Recipe, RecipeError, make_recipe
from waver.training.rl.methods.earl import gate, share_now, thresholds
from waver.training.rl.toy import Task, train

NAN = math.nan
ENTROPY = torch.tensor([[0.05, 1.2, 0.01, 0.4, 2.0, 0.02, 0.3, 0.1], [0.9, 0.1, 0.8, 0.7, NAN, NAN, NAN, NAN]]).double()
MASK = ENTROPY.isfinite().to(F64)
GATE = [[0, 1, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]


def recipe(scope: str = "response", **settings: Any) -> Recipe:
    return make_recipe("grpo", [{"name": "earl", "scope": scope}], **{"kl": 0} | settings)


def rows() -> Batch:
    logprob = torch.zeros(2, 8, dtype=F64, requires_grad=True)
    advantage = torch.tensor([[1.0], [-1.0]], dtype=F64) * MASK
    return batch(MASK, entropy=ENTROPY, logprob=logprob, old_logprob=torch.zeros(2, 8), advantage=advantage)


def test_the_gate() -> None:
    assert thresholds(ENTROPY, MASK).flatten().tolist() == pytest.approx([0.88, 0.84])
    assert thresholds(ENTROPY, MASK, scope="batch").flatten().tolist() == pytest.approx([0.88, 0.88])
    assert gate(ENTROPY, MASK).int().tolist() == GATE
    assert gate(ENTROPY, MASK, scope="batch").int().tolist() == GATE


def test_each_response_has_a_threshold_of_its_own() -> None:
    """A response that is certain throughout is learned from by `response`, and not by `batch`."""
    certain = torch.stack([ENTROPY[0], ENTROPY[0] * 1e-3])
    assert gate(certain, torch.ones(2, 8)).sum(1).tolist() == [2, 2]
    assert gate(certain, torch.ones(2, 8), scope="batch").sum(1).tolist() == [4, 0]


def test_entropies_that_are_alike_all_pass() -> None:
    assert gate(torch.full((1, 3), 0.5), torch.ones(1, 3)).all()


def test_a_row_without_tokens_and_a_row_of_one() -> None:
    assert gate(torch.tensor([[0.3, 9.0], [0.3, 9.0]]), torch.tensor([[0.0, 0], [1, 0]])).tolist() == [
        [False, False],
        [True, False],
    ]


def test_one_token_is_kept_at_the_smallest_share() -> None:
    entropy = torch.rand(50, 40, generator=torch.Generator().manual_seed(0))
    assert (gate(entropy, torch.ones(50, 40), 1e-9).sum(1) == 1).all()


@pytest.mark.parametrize(("denominator", "value"), [("all", -0.0833333), ("selected", -0.3333333)])
def test_the_loss(denominator: str, value: float) -> None:
    made = recipe(denominator=denominator)
    step, _ = made.control(rows())
    loss, _ = made.loss(step)
    assert loss.item() == pytest.approx(value, abs=6e-8)
    (gradient,) = torch.autograd.grad(loss, step.logprob)
    size = 1 / 12 if denominator == "all" else 1 / 3
    sign = torch.tensor([[-1.0], [1.0]], dtype=F64)
    torch.testing.assert_close(gradient, sign * size * torch.tensor(GATE, dtype=F64))


def test_kl_is_not_gated() -> None:
    made = recipe(kl=0.5)
    step, _ = made.control(Batch(**vars(rows()) | {"ref_logprob": torch.full((2, 8), -1.0, dtype=F64)}))
    assert made.loss(step)[0].item() == pytest.approx(-1 / 12 + 0.5 * math.exp(-1))


def test_micro_batches_add_up() -> None:
    made = recipe()
    step, _ = made.control(rows())
    assert sum(made.loss(part)[0].item() for part in step.counted().split(2)) == pytest.approx(-1 / 12)


def test_the_report() -> None:
    _, metrics = recipe().control(rows())
    assert metrics["earl/kept"] == metrics["selected"] == pytest.approx(3 / 12)
    assert metrics["earl/kept_entropy"] == pytest.approx((1.2 + 2 + 0.9) / 3)
    assert metrics["earl/dropped_entropy"] == pytest.approx(
        (0.05 + 0.01 + 0.4 + 0.02 + 0.3 + 0.1 + 0.1 + 0.8 + 0.7) / 9
    )


def test_the_share_can_come_down() -> None:
    assert [share_now(at, 0.2, 0.5) for at in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert share_now(0.01) == 0.2


def test_defaults() -> None:
    settings = make_recipe("grpo", ["earl"]).settings
    assert (settings.clip_low, settings.clip_high, settings.kl, settings.denominator) == (0.2, 0.28, 1e-3, "all")
    assert make_recipe("grpo", ["earl"]).needs_reference
    assert recipe().state_dict() == {"earl": {}}


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.5}, {"scope": "row"}, {"anneal": 2}])
def test_refusals(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="earl"):
        make_recipe("grpo", [{"name": "earl"} | wrong])


def test_uncertain_tokens_are_the_ones_to_learn_from() -> None:
    """Reference, three seeds: 0.93 to 0.95 right, 0.26 from the other three quarters (full GRPO 0.97)."""

    def right(method: Method | dict[str, Any]) -> float:
        made = Recipe("grpo", [method]) if isinstance(method, Method) else make_recipe("grpo", [method], kl=0)
        return train(made, 0, task=Task(noise=0, pretrain_steps=300), steps=80).end.accuracy

    def others(b: Batch) -> torch.Tensor:
        return (~gate(b.entropy, b.mask, 0.25)).to(b.mask.dtype)

    ours = right({"name": "earl", "share": 0.25})
    assert ours > 0.88
    assert right(Method(name="others", paper="none", summary="for a test", token_weight=others)) < 0.45
