"""The functions that verl registers: its signatures, our loss, and what its registries cannot carry.

They are called here as verl's trainer calls them; verl itself is not installed beside this transformers, and
test_inside_verl.py runs beside it in an environment of its own.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.rl.rows import batch
from waver.training.rl import Batch, Method, Recipe, RecipeError, load, make_recipe
from waver.training.rl.adapters.verl import advantage, policy_loss

G = torch.Generator().manual_seed(0)
MASK = (torch.arange(7) < torch.tensor([[7], [3], [5], [1]])).long()
OLD = -torch.rand(4, 7, generator=G, dtype=torch.float64)
NEW = OLD + 0.3 * torch.randn(4, 7, generator=G, dtype=torch.float64)
A = torch.randn(4, 1, generator=G, dtype=torch.float64) * MASK
MODES: dict[str, dict[str, Any]] = {
    "token-mean": {},
    "seq-mean-token-mean": {"aggregation": "seq-mean-token-mean"},
    "seq-mean-token-sum-norm": {"aggregation": "seq-mean-token-sum-norm", "max_length": 16, "clip_high": 0.28},
    "gspo": {"ratio": "gspo", "aggregation": "seq-mean-token-mean", "dual_clip": None},
}


def called(recipe: Recipe, rows: slice = slice(None), **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient, as verl's actor asks for them."""
    new = NEW[rows].clone().requires_grad_()
    loss, metrics = policy_loss(recipe)(
        old_log_prob=OLD[rows],
        log_prob=new,
        advantages=A[rows],
        response_mask=MASK[rows],
        loss_agg_mode=given.pop("loss_agg_mode", recipe.settings.aggregation),
        config=given.pop("config", SimpleNamespace(global_batch_info={})),
        rollout_is_weights=given.pop("rollout_is_weights", None),
    )
    loss.backward()
    assert all(isinstance(value, float) for value in metrics.values())
    assert new.grad is not None
    return loss.detach(), new.grad


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_ours_and_micro_batches_add_up(mode: str) -> None:
    recipe = Recipe("grpo", **MODES[mode])
    new = NEW.clone().requires_grad_()
    expected, _ = recipe.loss(batch(MASK, old_logprob=OLD, logprob=new, advantage=A))
    expected.backward()
    loss, gradient = called(recipe)
    torch.testing.assert_close(loss, expected.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, new.grad, atol=1e-12, rtol=0)
    whole = SimpleNamespace(global_batch_info={"dp_size": 2, "batch_num_tokens": MASK.sum(), "global_batch_size": 4})
    parts = [called(recipe, slice(i, i + 2), config=whole) for i in (0, 2)]
    # Two workers, whose gradients verl averages: each gives twice its share.
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 2, gradient, atol=1e-12, rtol=0)


def test_the_weights_of_the_rollout_engine_leave_the_denominator_alone() -> None:
    plain, _ = called(Recipe("grpo"))
    half, _ = called(Recipe("grpo"), rollout_is_weights=torch.full_like(OLD, 0.5))
    assert half == pytest.approx(float(plain) / 2)


def test_advantages_go_by_uid() -> None:
    rewards = torch.zeros(4, 7, dtype=torch.float64)
    rewards[:, 0] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    uid = np.array(["b", "a", "b", "a"], dtype=object)
    found, returns = advantage(Recipe("dr_grpo", max_length=7))(
        token_level_rewards=rewards, response_mask=MASK, config=None, index=uid
    )
    assert found is returns
    assert (found == torch.tensor([[0.5], [-0.5], [-0.5], [0.5]]) * MASK).all()


SHORT = Method(
    name="short",
    paper="",
    summary="",
    advantage_transform=lambda b: b.advantage + 0.1,
    token_weight=lambda b: (1 / b.lengths).unsqueeze(1).expand_as(b.mask),
)


def test_weights_are_folded_into_the_advantages() -> None:
    """verl's loss of the folded advantages is our loss with weights, whatever is clipped; not under `selected`."""
    recipe = Recipe("grpo", [SHORT])
    rewards = torch.zeros(4, 7, dtype=torch.float64)
    rewards[:, 0] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    group = torch.tensor([0, 0, 1, 1])
    folded, _ = advantage(recipe)(token_level_rewards=rewards, response_mask=MASK, index=group.numpy())
    step, _ = recipe.control(recipe.advantages(batch(MASK, reward=rewards[:, 0], group=group, old_logprob=OLD)))
    expected, _ = recipe.loss(Batch(**vars(step) | {"logprob": NEW}))
    found, _ = policy_loss(recipe)(
        old_log_prob=OLD, log_prob=NEW, advantages=folded, response_mask=MASK, loss_agg_mode="token-mean"
    )
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_controller_that_leaves_rows_out_is_refused() -> None:
    drop = Method(name="one", paper="", summary="", step_controller=lambda b: replace(b, mask=b.mask * 0))
    with pytest.raises(RecipeError, match="verl divides by all rows"):
        advantage(Recipe("grpo", [drop]))(
            token_level_rewards=torch.rand(4, 7), response_mask=MASK, index=np.array(["a", "a", "b", "b"])
        )


def test_the_signatures_are_those_that_verl_calls() -> None:
    names = "old_log_prob log_prob advantages response_mask loss_agg_mode config rollout_is_weights"
    assert list(inspect.signature(policy_loss(Recipe())).parameters) == names.split()
    estimate = inspect.signature(advantage(Recipe())).parameters
    assert list(estimate)[:4] == ["token_level_rewards", "response_mask", "config", "index"]
    assert estimate["_"].kind is inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (lambda: Recipe("dapo"), "filter_groups"),
        (lambda: Recipe("grpo", kl=0.1), "use_kl_loss"),
        (lambda: Recipe("grpo", entropy=0.1), "entropy_coeff"),
        (lambda: Recipe("grpo", denominator="selected"), "denominator=all"),
        (
            lambda: Recipe("grpo", [Method(name="one", paper="", summary="", live_weight=lambda b: b.mask)]),
            "one needs live_weight",
        ),
        (
            lambda: Recipe("grpo", [SHORT, load("kl_cov")]),
            "the weights of short folded into the advantages, by which kl_cov chooses",
        ),
    ],
)
def test_what_the_registries_cannot_carry_is_refused(recipe: Any, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        policy_loss(recipe())


def test_what_a_method_only_logs_is_no_obstacle() -> None:
    loss, _ = called(make_recipe("grpo", [{"name": "kl_cov", "share": 0.2, "penalty": 0.0}]))
    plain, _ = called(Recipe("grpo", clip_low=1e9, clip_high=1e9, dual_clip=None))
    assert loss == pytest.approx(float(plain))


def test_another_aggregation_is_refused() -> None:
    with pytest.raises(RecipeError, match="loss_agg_mode"):
        called(Recipe("grpo"), loss_agg_mode="seq-mean-token-mean")
