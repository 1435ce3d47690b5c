"""Top-p (nucleus sampling), arXiv 1904.09751: keep the most likely tokens that hold a given mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from waver.engines.transforms.base import Context, Truncation, column
from waver.entropy import truncation
from waver.entropy.truncation import Crop


class TopP(Truncation):
    """Keep the smallest set of most likely tokens with a given mass (nucleus sampling)."""

    paper: ClassVar[str] = "arXiv 1904.09751"

    name: Literal["top_p"] = "top_p"
    p: float = Field(default=0.9, gt=0.0, le=1.0, description="mass to keep")

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        return truncation.top_p(logits, column(asked, "p", logits))

    @property
    def sampling_fields(self) -> dict[str, float]:
        return {"top_p": self.p}
