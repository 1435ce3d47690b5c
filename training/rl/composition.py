"""Check which methods can stand together, and merge the settings and measures that they bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from waver.training.rl.method import Measure, Method

ALONE = {
    "advantage": "{} and {} both replace the advantage estimator; use one of them",
    "policy_loss": "{} and {} both replace the clipped loss; use one of them",
}
"""Hooks that one method at most may fill, and what is said to two."""
RESERVED = {"tokens", "rows", "selected", "selected_rows"}
"""Names that `Batch.totals` gives to sums of its own."""


class RecipeError(ValueError):
    """A recipe that cannot be, with a sentence that says why and what to do."""


def check_pairs(methods: Sequence[Method]) -> None:
    """Check that each two of the methods can stand together.

    Raises:
        RecipeError: one is there twice, two fill a hook that takes one, or one excludes another.
    """
    for one, other in combinations(methods, 2):
        if one.name == other.name:
            raise RecipeError(f"{one.name} is in the recipe twice; list it once")
        for hook, sentence in ALONE.items():
            if getattr(one, hook) is not None and getattr(other, hook) is not None:
                raise RecipeError(sentence.format(one.name, other.name))
        reason = one.excludes.get(other.name) or other.excludes.get(one.name)
        if reason is not None:
            raise RecipeError(f"{one.name} and {other.name} cannot be combined: {reason}")


def merge_defaults(methods: Sequence[Method], decided: set[str]) -> dict[str, Any]:
    """Return the settings that the methods train with, those left out that are decided already.

    Raises:
        RecipeError: two of them want different things.
    """
    merged: dict[str, Any] = {}
    source: dict[str, str] = {}
    for method in methods:
        for name, value in method.defaults.items():
            if name in decided:
                continue
            if name in merged and merged[name] != value:
                raise RecipeError(
                    f"{source[name]} trains with {name}={merged[name]!r} and {method.name} with {value!r}: "
                    f"say which, by setting {name}"
                )
            merged[name], source[name] = value, method.name
    return merged


def merge_measures(methods: Sequence[Method]) -> tuple[Measure, ...]:
    """Return every measure once, computed whenever one of the methods wants it.

    Raises:
        RecipeError: two mean different things by one name, or the name is taken.
    """
    merged: dict[str, Measure] = {}
    for method in methods:
        for measure in method.measures:
            if measure.name in RESERVED:
                raise RecipeError(f"{method.name} calls a measure {measure.name!r}, which is a name of the base")
            known = merged.get(measure.name, measure)
            if (known.of, known.source, known.layer) != (measure.of, measure.source, measure.layer):
                raise RecipeError(f"{method.name} and another method mean different things by {measure.name!r}")
            merged[measure.name] = replace(known, old=known.old or measure.old, live=known.live or measure.live)
    return tuple(merged.values())
