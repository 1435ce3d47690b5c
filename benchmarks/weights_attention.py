"""A small experiment on entropy-guided attention: language models whose only nonlinearity is the softmax."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from waver.entropy.attention import row_entropy
from waver.training.tuning.attention_entropy import EntropyRegulariser, SoftmaxOnlyBlock

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 16, 32, 32, 4, 2
STEPS, BATCH, RATE = 400, 16, 2e-3
WAYS = {"plain": (False, 0.0), "tempered": (True, 0.0), "guided 0.16": (True, 0.16), "guided 0.5": (True, 0.5)}
"""By name: whether attention has temperatures, and the weight of the loss on entropies."""


class SoftmaxOnly(nn.Module):
    """Learned places, two blocks without normalisation or activation, and an output layer."""

    def __init__(self, tempered: bool) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(SoftmaxOnlyBlock(WIDTH, HEADS, LENGTH, tempered) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and "temperature" not in name:
                nn.init.normal_(weight, std=0.05)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits `[rows, length, vocabulary]` and each layer's attention."""
        hidden = self.token(ids) + self.place(torch.arange(ids.shape[1]))
        attentions = []
        for block in self.blocks:
            hidden, attention = block(hidden)
            attentions.append(attention)
        return self.head(hidden), attentions


def repeated(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Draw segments of 8 tokens, repeated, of which each token is replaced at random with probability 0.05."""
    segment = torch.randint(VOCABULARY, (rows, 8), generator=generator)
    ids = segment.repeat(1, 5)[:, : LENGTH + 1]
    noise = torch.randint(VOCABULARY, ids.shape, generator=generator)
    return torch.where(torch.rand(ids.shape, generator=generator) < 0.05, noise, ids)


def guided(seed: int, steps: int = STEPS, ways: Iterable[str] = WAYS) -> dict[str, dict[str, float]]:
    """Return by way the cross-entropy on fresh sequences, and the first layer's mean row entropy as a part of log of
    the length."""
    judged = repeated(256, torch.Generator().manual_seed(seed + 500))
    found = {}
    for name in ways:
        tempered, weight = WAYS[name]
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model, points = SoftmaxOnly(tempered), EntropyRegulariser(LAYERS, HEADS, LENGTH)
        trained = [*model.parameters(), *points.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=RATE)
        for _ in range(steps):
            ids = repeated(BATCH, generator)
            logits, attentions = model(ids[:, :-1])
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            (loss + weight * points(attentions) if weight else loss).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        with torch.no_grad():
            logits, attentions = model(judged[:, :-1])
            loss = cross_entropy(logits.flatten(0, 1), judged[:, 1:].flatten())
            entropy = row_entropy(attentions[0]).mean() / math.log(LENGTH)
        found[name] = {"loss": float(loss), "first_layer": float(entropy)}
    return found
