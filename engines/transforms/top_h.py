"""Top-H, arXiv 2509.02510: keep the most likely tokens that hold a part of the distribution's entropy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from waver.engines.transforms.base import Context, Truncation, column
from waver.entropy import truncation
from waver.entropy.truncation import Crop


class TopH(Truncation):
    """Keep the most likely tokens up to a part of the distribution's entropy."""

    paper: ClassVar[str] = "arXiv 2509.02510"

    name: Literal["top_h"] = "top_h"
    alpha: float = Field(default=0.4, gt=0.0, le=1.0, description="part of the entropy to keep")
    form: Literal["running", "renormalised"] = Field(
        default="running", description="entropy terms summed over the top 100 (as released), or of the crop (the paper)"
    )

    @property
    def variant(self) -> Hashable:
        return self.form

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        renormalised = asked[0].form == "renormalised"
        keep = truncation.top_h_renormalised if renormalised else truncation.top_h_running
        return keep(logits, column(asked, "alpha", logits))
