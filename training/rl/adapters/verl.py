"""Register recipes in verl under the name `waver`: the base loss and advantages, and methods that need no entropies.

    actor_rollout_ref.model.external_lib=waver.training.rl.adapters.verl
    actor_rollout_ref.actor.policy_loss.loss_mode=waver  algorithm.adv_estimator=waver

Importing this module in a process with WAVER_RECIPE set, the path of a YAML file with `make_recipe`'s arguments,
registers that recipe there; the driver has to import it too, for the advantages. verl's registries hand over rewards
or log-probabilities, but no entropies, no whole steps and not which rows are right: a method that declares that it
reads one of these (`Method.reads`, `measures`), or fills another hook, is refused, and one that reads it undeclared
fails there. Run inside verl 0.9.1 (`make verl`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from waver.training.rl.batch import Batch, at_least_float32
from waver.training.rl.composition import RecipeError
from waver.training.rl.method import Method
from waver.training.rl.recipe import Recipe
from waver.training.rl.registry import make_recipe
from waver.training.rl.unknown import READABLE, Unknown

NAME = "waver"
FOLDED = {"step_controller", "advantage_transform", "token_weight"}
"""Hooks whose effect is folded into the advantages: the base loss of weight times advantage is weight times loss."""
HOOKS = {"reward", "advantage", "update_controller", "policy_loss", *FOLDED}
"""Hooks that verl's two registries can hold."""
NO_HOOKS = {"name", "paper", "summary", "state", "defaults", "excludes", "report", "reads"}
"""Of a method, what changes nothing in a step: what it would log is left out."""
TENSORS = {*READABLE, "mask", "draw", "reward", "group", "old_logprob", "logprob", "advantage", "weight"}
"""Fields of a batch that every trainer but verl fills."""
ELSEWHERE = {
    "kl": "set actor.use_kl_loss and actor.kl_loss_coef in verl, and kl=0",
    "entropy": "set actor.entropy_coeff in verl, and entropy=0",
    "dynamic_sampling": "set algorithm.filter_groups in verl, and dynamic_sampling=false",
    "mask_truncated": "verl does not say which rows were cut; set mask_truncated=false",
}
"""Settings that verl has a place for outside its registries, and what to do."""


def check(recipe: Recipe) -> None:
    """Check that verl's registries can carry the recipe.

    Raises:
        RecipeError: they cannot, with what to do instead.
    """
    for setting, advice in ELSEWHERE.items():
        if getattr(recipe.settings, setting):
            raise RecipeError(f"{setting} is not for a registered loss: {advice}")
    if recipe.settings.denominator != "all":
        raise RecipeError("verl divides by all valid tokens: set denominator=all")
    replaced = [method.name for method in recipe.methods if method.policy_loss]
    for method in recipe.methods:
        if replaced and method.token_weight:
            raise RecipeError(
                f"verl gets the weights of {method.name} folded into the advantages, by which {replaced[0]} chooses: "
                "train with TRL"
            )
        if method.reads:
            read = ", ".join(sorted(method.reads))
            raise RecipeError(
                f"{method.name} reads {read} of the rows, which verl's registries do not hand over: train with TRL"
            )
        for hook in sorted({field.name for field in fields(Method)} - HOOKS - NO_HOOKS):
            if getattr(method, hook):
                raise RecipeError(f"{method.name} needs {hook}, which verl's registries do not offer: train with TRL")


def _batch(mask: torch.Tensor, dtype: torch.dtype, **said: torch.Tensor) -> Batch:
    """Return rows of which verl says no more than this; reading anything else of them fails."""
    mask = mask.to(torch.promote_types(dtype, torch.float32))
    fields_said: dict[str, Any] = {
        "mask": mask,
        "draw": torch.zeros(len(mask), dtype=torch.long, device=mask.device),
        "advantage": torch.zeros_like(mask),
        "weight": torch.ones_like(mask),
        **said,
    }
    unsaid = {
        name: Unknown.because(f"a method reads {name} of the rows, which verl does not hand over here: train with TRL")
        for name in TENSORS - fields_said.keys()
    }
    return Batch(**fields_said, **unsaid)


def policy_loss(recipe: Recipe) -> Callable[..., tuple[torch.Tensor, dict[str, float]]]:
    """Return the recipe as verl calls a policy loss: a scalar and metrics from `[B, T]` tensors of a micro-batch.

    Raises:
        RecipeError: `check` refuses the recipe; when called, `loss_agg_mode` is not the recipe's aggregation.
    """
    check(recipe)

    def loss(
        old_log_prob: torch.Tensor,
        log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        s = recipe.settings
        if s.ratio != "gspo" and loss_agg_mode != s.aggregation:
            raise RecipeError(f"the recipe aggregates by {s.aggregation}: set actor.loss_agg_mode to that")
        batch = _batch(response_mask, log_prob.dtype, old_logprob=at_least_float32(old_log_prob.detach()))
        whole = getattr(config, "global_batch_info", None) or {}
        share = whole.get("dp_size", 1)  # verl averages over so many workers afterwards
        batch = recipe.begin_update(replace(batch, logprob=log_prob, advantage=advantages))
        totals = dict(batch.totals)
        for name, given in (("tokens", "batch_num_tokens"), ("rows", "global_batch_size")):
            if whole.get(given) is not None:
                totals[name] = float(whole[given]) / share
        given_weights = None if rollout_is_weights is None else rollout_is_weights.detach()
        batch = replace(batch, correction=given_weights, totals=totals)
        total, metrics = recipe.loss(batch)
        return total, {f"actor/{name}": value for name, value in metrics.items()}

    return loss


def advantage(recipe: Recipe) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return the recipe as verl calls an advantage estimator: `[B, T]` advantages, and the same as returns.

    Raises:
        RecipeError: `check` refuses the recipe.
    """
    check(recipe)

    def estimate(
        token_level_rewards: torch.Tensor, response_mask: torch.Tensor, config: Any = None, index: Any = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if index is None:
            raise RecipeError("the advantages of a group need `uid`, which says whose rows belong together")
        group = np.unique(np.asarray(index).astype(str), return_inverse=True)[1]
        batch = _batch(
            response_mask,
            token_level_rewards.dtype,
            reward=token_level_rewards.sum(1),
            group=torch.as_tensor(group, device=token_level_rewards.device),
        )
        found = recipe.shaped(recipe.advantages(batch))
        if not torch.equal(found.mask, batch.mask):
            raise RecipeError("a controller leaves rows out, and verl divides by all rows all the same: train with TRL")
        folded = found.advantage * found.weight
        return folded, folded

    return estimate


def register(recipe: Recipe, name: str = NAME) -> None:
    """Put a recipe into verl's registries, in this process.

    Raises:
        RecipeError: `check` refuses it. ModuleNotFoundError: verl is not installed.
    """
    loss, estimate = policy_loss(recipe), advantage(recipe)
    if recipe.looks_ahead:
        logging.getLogger(__name__).warning(
            "%s chooses by all rows of an update, and verl shows a loss one micro-batch of one worker: it chooses in "
            "each by itself, as verl's own losses do, unless ppo_micro_batch_size_per_gpu is the whole mini-batch",
            " and ".join(recipe.looks_ahead),
        )
    from verl.trainer.ppo import core_algos

    core_algos.register_policy_loss(name)(loss)
    core_algos.register_adv_est(name)(estimate)


if (_file := os.environ.get("WAVER_RECIPE")) and find_spec("verl") is not None:
    register(make_recipe(**yaml.safe_load(Path(_file).read_text())))
