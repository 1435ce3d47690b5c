"""The base classes of transforms: `Transform`, and `Truncation` for those that take tokens away."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict

from waver.devices import to_device
from waver.entropy.geometry import Geometry
from waver.entropy.truncation import Crop


class Transform(BaseModel):
    """A transform of the next-token distribution. Its fields are its parameters, with their ranges.

    A subclass gives `name` a `Literal` default and every other field a default and a description. Its docstring's first
    line is its summary.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    paper: ClassVar[str | None] = None
    """Its source, such as `arXiv 2509.02510`."""

    name: str

    @property
    def needs_geometry(self) -> bool:
        """Return whether it may need the whitened input embeddings."""
        return False

    @property
    def sampling_fields(self) -> dict[str, float]:
        """Fields of `Sampling` with the same effect, which are set instead; empty where there are none."""
        return {}

    def as_data(self) -> dict[str, Any]:
        """Return plain JSON data, for `from_data`."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Context:
    """The inputs of a truncation beside the logits.

    `temperatures`: `[rows]`, what the logits were divided by; None where no row selects at its own temperature.
    `geometry`: from `waver.entropy.geometry.whiten`, where a transform `needs_geometry`.
    """

    temperatures: torch.Tensor | None = None
    geometry: Geometry | None = None


class Truncation(Transform):
    """A transform that takes tokens away: it decides, for many rows at once, which ones may be drawn."""

    @property
    def variant(self) -> Hashable:
        """A value that rows must share, beside the class, to be cropped together."""
        return None

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        """Truncate rows that ask for this class.

        Args:
            logits: `[rows, vocab]` float32 or float64 after temperature; masked tokens are at `-inf`. Do not change
                them in place.
            asked: for each row its parameters. They share one `variant`.

        Raises:
            ValueError: a part of the `context` is needed and missing.
        """
        raise NotImplementedError


def column(asked: Sequence[Truncation], parameter: str, logits: torch.Tensor) -> torch.Tensor:
    """Collect one parameter of all rows, `[rows]` float64 on the device of the logits."""
    return to_device([getattr(each, parameter) for each in asked], logits.device, torch.float64)
