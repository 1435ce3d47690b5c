"""Read the sampling that a model's makers recommend, from its `generation_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from transformers import GenerationConfig

NONE: Mapping[str, float] = MappingProxyType({})
BOUNDS = {
    "temperature": (0.0, 2.0), "top_p": (1e-9, 1.0), "top_k": (0, 2**31 - 1), "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0), "max_new_tokens": (1, 2**31 - 1),
}  # fmt: skip
"""The settings that are taken over, with their least and largest values."""


@runtime_checkable
class Recommending(Protocol):
    """An engine whose model comes with settings for requests that name none: `BOUNDS` has their names."""

    recommended: Mapping[str, float]


def recommended_sampling(model: str, **options: Any) -> Mapping[str, float]:
    """Return a model's settings, those left out that are not given, neutral or out of bounds.

    Args:
        model: a directory or hub id. options: transformers' own, such as `revision`.
    """
    try:
        return taken_over(GenerationConfig.from_pretrained(model, **options).to_diff_dict())
    except (OSError, ValueError):  # there is none, or it is not what it should be
        return NONE


def taken_over(said: Mapping[str, Any]) -> Mapping[str, float]:
    """Select from the content of a `generation_config.json` what is taken over."""
    found = {}
    for name, (least, most) in BOUNDS.items():
        value = said.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            found[name] = value
    return MappingProxyType(found)
