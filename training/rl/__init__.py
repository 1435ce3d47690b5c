"""Reinforcement learning from verifiable rewards: one base, and methods that are hooks on it.

`Recipe` composes them; trainers call it. The tensors are `[batch, response tokens]`, the entropies in nats.
"""

from training.rl.batch import Batch, Rollouts
from training.rl.composition import RecipeError
from training.rl.method import Draw, Measure, Method
from training.rl.recipe import Recipe
from training.rl.registry import load, make_recipe, names
from training.rl.settings import BASES, Settings, Strict

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
