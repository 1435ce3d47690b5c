"""Entropy-Guided Attention (arXiv 2501.03489): hold the entropy of every attention head near a point that it learns.

The authors make models whose only nonlinearity is the softmax of attention, for private inference. Their heads then
look everywhere alike (overload) or at one place (collapse); a loss on attention rows mends the first. It serves to tune
any model that hands out its attention, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from waver.entropy.attention import row_entropy


class EntropyRegulariser(nn.Module):
    """Penalise heads whose row entropy is far from their set point; the set points are learned.

    With E the entropy of a row, M = log of the context length, and theta a part of M for each layer and head:

        pen = (E - theta M)^2 where |E - theta M| > tolerance M, else 0

    The loss is the mean over layers, heads, texts and places. The released code sums over texts and places instead,
    with a weight of 1e-5: at its batch of 128 texts of 128 tokens that is a weight of 0.16 on the mean.

    Args:
        length: of the context, the same for every row. tolerance: gamma. start: set points before training; ours, as
            the paper's are not known.
    """

    def __init__(self, layers: int, heads: int, length: int, tolerance: float = 0.2, start: float = 0.5) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.full((layers, heads), start))
        self.length, self.tolerance = length, tolerance

    def forward(self, attentions: Sequence[torch.Tensor], mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the loss.

        Args:
            attentions: for each layer `[texts, heads, queries, keys]`. mask: `[texts, queries]`, 1 where there is text;
                without it padding counts.
        """
        most = math.log(self.length)
        total = attentions[0].new_zeros(())
        for points, attention in zip(self.thresholds, attentions, strict=True):
            off = row_entropy(attention) - (points * most).view(1, -1, 1)
            penalty = torch.where(off.detach().abs() > self.tolerance * most, off, 0.0).square()
            if mask is None:
                total = total + penalty.mean()
            else:
                kept = mask[:, None, :].to(penalty.dtype).expand_as(penalty)
                total = total + (penalty * kept).sum() / kept.sum()
        return total / len(attentions)


class TemperedAttention(nn.Module):
    """Causal attention with a learnable temperature for each head and query place: softmax(q k / (t sqrt(d))).

    t starts at 1 and is kept above 0.01 (both ours). Returns the output and the rows.
    """

    def __init__(self, width: int, heads: int, length: int, tempered: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(heads, length)) if tempered else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, length, width = x.shape
        query, key, value = self.inputs(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        if self.temperature is not None:
            logits = logits / self.temperature[:, :length].clamp(min=0.01).unsqueeze(-1)
        ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        attention = logits.masked_fill(ahead, -torch.inf).softmax(-1)
        return self.output((attention @ value).transpose(1, 2).reshape(rows, length, width)), attention


class ScaledFeedForward(nn.Module):
    """Compute beta x + W x / alpha: a feed-forward of one linear map, with two learnable scales in place of a
    normalisation (ScFuFFN)."""

    def __init__(self, width: int, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        self.fused = nn.Linear(width, width, bias=False)
        self.alpha, self.beta = nn.Parameter(torch.tensor(alpha)), nn.Parameter(torch.tensor(beta))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = self.fused(x)
        return self.beta * x + moved / self.alpha


class SoftmaxOnlyBlock(nn.Module):
    """One layer without any other nonlinearity: attention with its residual, then the scaled feed-forward."""

    def __init__(self, width: int, heads: int, length: int, tempered: bool = True) -> None:
        super().__init__()
        self.attention = TemperedAttention(width, heads, length, tempered)
        self.feed_forward = ScaledFeedForward(width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, `[rows, length, width]`, and the attention, `[rows, heads, length, length]`."""
        moved, attention = self.attention(x)
        return self.feed_forward(x + moved), attention
