"""Eta sampling, arXiv 2210.15191: keep tokens above a threshold that falls as the entropy grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from waver.engines.transforms.base import Context, Truncation, column
from waver.entropy import truncation
from waver.entropy.truncation import Crop


class Eta(Truncation):
    """Keep tokens above a probability that falls as the entropy grows."""

    paper: ClassVar[str] = "arXiv 2210.15191"

    name: Literal["eta"] = "eta"
    epsilon: float = Field(default=2e-4, gt=0.0, lt=1.0, description="threshold where the entropy is low")

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        return truncation.eta(logits, column(asked, "epsilon", logits))
