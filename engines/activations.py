"""Activation functions that transformers lacks, under names that a model's configuration may have as `hidden_act`."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN

START = 0.01
"""Coefficient of CRReLU before training."""


class CRReLU(nn.Module):
    """Compute relu(x) + eps x exp(-x^2 / 2) with one learnable eps a module (CRReLU, arXiv 2405.12954).

    ReLU moved one step along the functional gradient of its output's entropy, for a standard normal input. The
    correction is at most 0.607 |eps| and is computed in float32. Derivative at 0: eps.
    """

    def __init__(self, eps: float = START) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.tensor(float(eps)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        correction = self.eps.to(wide.dtype) * (wide * (-0.5 * wide.square()).exp())
        return (torch.relu(wide) + correction).to(x.dtype)


def register() -> None:
    """Let transformers build models whose configuration says `"hidden_act": "crrelu"`; again, it changes nothing."""
    ACT2FN["crrelu"] = CRReLU
