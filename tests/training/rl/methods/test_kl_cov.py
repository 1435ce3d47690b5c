"""KL-Cov: reference figures, who is held, and that it holds entropy at equal accuracy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.rl.rows import F64, batch
from tests.training.rl.tabular import Keys
from waver.training.rl import Batch, RecipeError, make_recipe
from waver.training.rl.entropy_change import covariance
from waver.training.rl.methods.kl_cov import highest

MASK = [[1, 1, 1, 0], [1, 1, 1, 1]]
LOGPROB = [[-0.1, -2, -0.5, 0], [-0.05, -1, -3, -0.2]]
MOVED = [[0.10, -0.05, 0, 0], [0.02, -0.10, 0.05, 0]]
ADVANTAGE = [[1, 1, 1, 0], [-1, -1, -1, -1]]


def rows(moved: Any = MOVED) -> Batch:
    logprob = torch.tensor(LOGPROB, dtype=F64, requires_grad=True)
    old = logprob.detach() - torch.tensor(moved, dtype=F64)
    return batch(MASK, logprob=logprob, old_logprob=old, advantage=ADVANTAGE)


def recipe(share: float = 0.3, penalty: float = 1.0, **settings: Any) -> Any:
    return make_recipe("grpo", [{"name": "kl_cov", "share": share, "penalty": penalty}], **settings)


def test_the_figures() -> None:
    b = rows()
    cov = covariance(b.logprob, b.advantage, b.mask)
    assert highest(cov, b.mask, 0.3).nonzero().tolist() == [[0, 0], [1, 2]]
    assert recipe(penalty=0).loss(b)[0].item() == pytest.approx(0.1314156, abs=6e-8)
    loss, _ = recipe().loss(b)
    assert loss.item() == pytest.approx(0.1528442, abs=6e-8)
    (gradient,) = torch.autograd.grad(loss, b.logprob)
    figures = [-0.015024, -0.135890, -0.142857, 0, 0.145743, 0.129262, 0.293039, 0.142857]
    assert gradient.flatten().tolist() == pytest.approx(figures, abs=6e-7)


def test_the_first_update_is_plain_policy_gradient() -> None:
    b = rows(torch.zeros(2, 4).tolist())
    (gradient,) = torch.autograd.grad(recipe().loss(b)[0], b.logprob)
    torch.testing.assert_close(gradient, -b.advantage / 7)


def test_nothing_is_clipped() -> None:
    """A ratio of e^3 at A = 1, which any clip would flatten; and A = -1, where the dual clip would."""
    for sign in (1.0, -1.0):
        logprob = torch.tensor([[-0.5, -1.0]], dtype=F64, requires_grad=True)
        b = batch([[1, 1]], logprob=logprob, old_logprob=[[-3.5, -1]], advantage=[[sign, -sign]])
        loss, _ = recipe(share=0.5, penalty=0).loss(b)
        (gradient,) = torch.autograd.grad(loss, logprob)
        assert gradient[0, 0].item() == pytest.approx(-sign * 20.0855369 / 2)


def test_who_is_held() -> None:
    """The share is a fraction of the valid tokens, rounded down, but one; padding is never held."""
    cov, mask = torch.arange(10.0).reshape(2, 5), torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0]])
    assert highest(cov, mask, 0.25).nonzero().tolist() == [[1, 1], [1, 2]]
    assert highest(cov, mask, 0.002).nonzero().tolist() == [[1, 2]]
    assert highest(-cov - 1, mask, 1.0).equal(mask > 0)
    assert not highest(cov, mask * 0, 0.5).any()


def test_micro_batches_hold_one_token_together() -> None:
    """Two micro-batches of the figures have one advantage each: by themselves each would hold a token."""
    made = recipe(share=0.01)
    begun = made.begin_update(rows())
    held = [int((micro.measures["kl_cov_held"] > 0).sum()) for micro in begun.split(2)]
    assert sorted(held) == [0, 1]
    parts = sum(made.loss(micro)[0].item() for micro in begun.split(2))
    assert parts == pytest.approx(made.loss(rows())[0].item(), abs=1e-12)


def test_a_part_of_an_update_alone_is_refused() -> None:
    (part, _) = rows().counted().split(2)
    with pytest.raises(ValueError, match="kl_cov must see the whole optimizer batch: call begin_update"):
        recipe().loss(part)


def test_nothing_valid_is_no_loss() -> None:
    b = rows()
    assert recipe().loss(Batch(**vars(b) | {"mask": b.mask * 0}))[0].item() == 0


def test_padding_may_hold_anything() -> None:
    b = rows()
    spoiled = b.old_logprob.masked_fill(b.mask == 0, torch.nan)
    loss, _ = recipe().loss(Batch(**vars(b) | {"old_logprob": spoiled}))
    assert loss.item() == pytest.approx(0.1528442, abs=6e-8)


def test_the_report() -> None:
    b = rows()
    _, metrics = recipe().control(Batch(**vars(b) | {"old_logprob": b.logprob.detach()}))
    assert metrics["kl_cov/covariance"] == pytest.approx(0.0959184, abs=6e-8)
    assert metrics["kl_cov/held_covariance"] == pytest.approx((1.0040816 + 1.7326531) / 2, abs=1e-7)
    assert metrics["kl_cov/bad_held"] == 0.5


def test_it_remembers_nothing() -> None:
    assert recipe().state_dict() == {"kl_cov": {}}


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 20.0}, {"penalty": -1.0}])
def test_refusals(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="kl_cov"):
        recipe(**wrong)


def test_entropy_is_held_at_equal_accuracy() -> None:
    """Ways to be right at 95 %: 2.65 for GRPO, 2.99 at a penalty of 0.3, 3.98 at 1 (reference), in more steps."""
    found = {}
    for penalty in (None, 0.3, 1.0):
        made = recipe(0.2, penalty) if penalty else make_recipe()
        keys = Keys(0)
        for step in keys.train(made, steps=150, group=16, updates=4, rate=30):
            if keys.accuracy() >= 0.95:
                found[penalty] = keys.ways(), keys.key_entropy(), step
                break
    ways, entropies, steps = zip(*(found[p] for p in (None, 0.3, 1.0)), strict=True)
    assert ways[0] + 0.1 < ways[1] < ways[2] - 0.5
    assert entropies[0] < entropies[1] < entropies[2]
    assert steps[0] < steps[1] < steps[2]
