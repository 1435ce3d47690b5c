"""Compose reinforcement learning from verifiable rewards: one base, and methods that are hooks on it.

`Recipe` composes them; trainers call it. The tensors are `[batch, response tokens]`, the entropies in nats.
"""

from waver.training.rl.batch import Batch, Rollouts
from waver.training.rl.composition import RecipeError
from waver.training.rl.method import Draw, Measure, Method
from waver.training.rl.recipe import Recipe
from waver.training.rl.registry import load, make_recipe, names
from waver.training.rl.settings import BASES, Settings
from waver.training.strict import Strict

__all__ = [
    "BASES",
    "Batch",
    "Draw",
    "Measure",
    "Method",
    "Recipe",
    "RecipeError",
    "Rollouts",
    "Settings",
    "Strict",
    "load",
    "make_recipe",
    "names",
]
