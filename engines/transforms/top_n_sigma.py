"""Top-nσ, arXiv 2411.07641: keep logits within some standard deviations of the largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from waver.engines.transforms.base import Context, Truncation, column
from waver.entropy import truncation
from waver.entropy.truncation import Crop


class TopNSigma(Truncation):
    """Keep logits within so many standard deviations of the largest, whatever the temperature."""

    paper: ClassVar[str] = "arXiv 2411.07641"

    name: Literal["top_n_sigma"] = "top_n_sigma"
    n: float = Field(default=1.0, ge=0.0, le=1e3, description="standard deviations of the logits below the largest")

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        return truncation.top_n_sigma(logits, column(asked, "n", logits))
