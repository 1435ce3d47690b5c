"""What a transform is: `Transform`, and `Truncation`, the kind that takes tokens away."""

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
    """Something that shapes a draw. Its fields are its parameters; it checks their ranges itself.

    A subclass gives `name` a `Literal` default and every other field a default and a description. Its docstring's first
    line is its summary.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    paper: ClassVar[str | None] = None
    """Where it comes from, as `arXiv 2509.02510`."""

    name: str

    @property
    def needs_geometry(self) -> bool:
        """Whether it may ask for the whitened input embeddings."""
        return False

    @property
    def sampling_fields(self) -> dict[str, float]:
        """Fields of `Sampling` that say the same to every engine, and are set instead; empty where there are none."""
        return {}

    def as_data(self) -> dict[str, Any]:
        """Plain JSON data, for `from_data`."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Context:
    """What a truncation may need beside the logits.

    `temperatures`: `[rows]`, what the logits were divided by; None where no row selects at a temperature of its own.
    `geometry`: from `waver.entropy.geometry.whiten`, where a transform `needs_geometry`.
    """

    temperatures: torch.Tensor | None = None
    geometry: Geometry | None = None


class Truncation(Transform):
    """A transform that takes tokens away: it decides, for many rows at once, which ones may be drawn."""

    @property
    def variant(self) -> Hashable:
        """Rows are cropped together where both the class and this value are equal."""
        return None

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        """Truncate rows that ask for this class.

        Args:
            logits: `[rows, vocab]` float32 or float64 after temperature; masked tokens are at `-inf`. Do not change
                them in place.
            asked: for each row its parameters. They share one `variant`.

        Raises:
            ValueError: something of the `context` is needed, and is not there.
        """
        raise NotImplementedError


def column(asked: Sequence[Truncation], parameter: str, logits: torch.Tensor) -> torch.Tensor:
    """One parameter of all rows, `[rows]` float64 on the device of the logits."""
    return to_device([getattr(each, parameter) for each in asked], logits.device, torch.float64)
