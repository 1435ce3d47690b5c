"""Min-p, arXiv 2407.01082: keep tokens that are not much less likely than the most likely one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from waver.engines.transforms.base import Context, Truncation, column
from waver.entropy import truncation
from waver.entropy.truncation import Crop


class MinP(Truncation):
    """Keep tokens at least so many times as likely as the most likely one."""

    paper: ClassVar[str] = "arXiv 2407.01082"

    name: Literal["min_p"] = "min_p"
    p: float = Field(default=0.1, ge=0.0, le=1.0, description="least probability, as a part of the largest")

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        return truncation.min_p(logits, column(asked, "p", logits))

    @property
    def sampling_fields(self) -> dict[str, float]:
        return {"min_p": self.p}
