"""Locally typical sampling, arXiv 2202.00666: keep tokens whose surprisal is near the entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from waver.engines.transforms.base import Context, Truncation, column
from waver.entropy import truncation
from waver.entropy.truncation import Crop


class Typical(Truncation):
    """Keep the tokens whose surprisal is nearest to the entropy, up to a given mass; may drop the most likely one."""

    paper: ClassVar[str] = "arXiv 2202.00666"

    name: Literal["typical"] = "typical"
    p: float = Field(default=0.95, gt=0.0, le=1.0, description="mass to keep")

    @classmethod
    def crop(cls, logits: torch.Tensor, asked: Sequence[Self], context: Context) -> Crop:
        return truncation.typical(logits, column(asked, "p", logits))
