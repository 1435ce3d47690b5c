"""Epsilon sampling, arXiv 2210.15191: keep tokens above a fixed probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from waver.engines.transforms.base import Context, Truncation, column
from waver.entropy import truncation
from waver.entropy.truncation import Crop


class Epsilon(Truncation):
    """Keep tokens above a fixed probability."""

    paper: ClassVar[str] = "arXiv 2210.15191"

    name: Literal["epsilon"] = "epsilon"
    epsilon: float = Field(default=3e-4, gt=0.0, lt=1.0, description="least probability")

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        return truncation.epsilon(logits, column(asked, "epsilon", logits))
