"""Check TRL's arguments against a recipe: which it takes over, and which do not go together with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from trl import GRPOConfig

from waver.training.rl.composition import RecipeError
from waver.training.rl.recipe import Recipe
from waver.training.rl.registry import make_recipe
from waver.training.rl.settings import BASES

INSTEAD = {
    "loss_type": "aggregation",
    "scale_rewards": "advantage",
    "epsilon": "clip_low",
    "epsilon_high": "clip_high",
    "delta": "dual_clip",
    "beta": "kl",
    "importance_sampling_level": "ratio",
    "entropy_coef": "entropy",
    "mask_truncated_completions": "mask_truncated",
}
"""Arguments of TRL that a recipe decides, and its own names for them."""
WITHOUT = (
    *("use_adaptive_entropy", "top_entropy_quantile", "off_policy_mask_threshold"),
    *("multi_objective_aggregation", "use_liger_kernel"),
)
"""Arguments of TRL that have no place beside a recipe."""


def as_recipe(recipe: Recipe | str | Mapping[str, Any], max_length: int) -> Recipe:
    """Return a recipe from itself, from the name of a base or of a method on `grpo`, or from the arguments of
    `make_recipe`.

    Raises:
        RecipeError: what `make_recipe` refuses.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        recipe = {"base": recipe} if recipe in BASES else {"methods": [recipe]}
    return make_recipe(**{"max_length": max_length, **recipe})


def updates_per_generation(args: GRPOConfig) -> int:
    """Return how many updates each generation is used for.

    Raises:
        RecipeError: the arguments do not go together with a recipe.
    """
    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    for name in (*INSTEAD, *WITHOUT):
        if getattr(args, name) != defaults[name]:
            if name in INSTEAD:
                raise RecipeError(f"{name} is for the recipe to decide: leave it out, and set {INSTEAD[name]} there")
            raise RecipeError(f"{name} has no place beside a recipe: leave it out")
    parts, accumulation = args.steps_per_generation, args.gradient_accumulation_steps
    if parts % accumulation:
        raise RecipeError(
            f"an update must not mix rows of two generations: steps_per_generation ({parts}) must be a multiple of "
            f"gradient_accumulation_steps ({accumulation})"
        )
    updates: int = parts // accumulation * args.num_iterations
    if args.save_strategy == "steps" and args.save_steps % updates:
        raise RecipeError(
            f"a checkpoint between two updates on the same rows could not be resumed exactly: save_steps must be a "
            f"multiple of {updates}"
        )
    return updates


def asks_for_old(args: GRPOConfig) -> bool:
    """Tell whether TRL itself asks for the log-probabilities of the old policy while it draws rows."""
    each: int = args.steps_per_generation * args.num_iterations
    return args.gradient_accumulation_steps % each != 0 or (args.use_vllm and args.vllm_importance_sampling_correction)


def check_engine(recipe: Recipe, args: GRPOConfig, rollout_func: Any) -> None:
    """Check that the rows can be drawn as the recipe's methods plan it.

    Raises:
        RecipeError: a method plans draws, and the rows come from an engine that cannot be told.
    """
    given = {
        "use_vllm": args.use_vllm,
        "use_transformers_continuous_batching": args.use_transformers_continuous_batching,
        "rollout_func": rollout_func is not None,
    }
    planners = [method.name for method in recipe.methods if method.rollout_sampler is not None]
    if planners and any(given.values()):
        raise RecipeError(
            f"{' and '.join(planners)} plans how rows are drawn, which only the trainer's own generation does: leave "
            f"{' and '.join(name for name, there in given.items() if there)} out"
        )


def check_refill(recipe: Recipe, refill: int, dataset: Any) -> None:
    """Check that groups can be drawn anew.

    Raises:
        RecipeError: the recipe leaves none out, or the prompts are a stream.
    """
    if refill and not recipe.settings.dynamic_sampling:
        raise RecipeError("refill draws groups anew that dynamic_sampling leaves out, and the recipe has it off")
    if refill and not hasattr(dataset, "__getitem__"):
        raise RecipeError("refill chooses prompts at random, which a stream of prompts does not allow: leave it out")
