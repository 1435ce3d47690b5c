"""Score a compressed model by its divergence from the dense one on texts (EvoPress, arXiv 2410.14649)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

TOP = 512
"""Tokens of which a dense distribution is kept; the released code's 10 are too few."""


def divergence(dense: torch.Tensor, compressed: torch.Tensor) -> torch.Tensor:
    """Compute KL(softmax(dense) || softmax(compressed)) of each row, in nats: `[..., vocab]` to `[...]`."""
    p, q = dense.log_softmax(-1), compressed.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def sequence_divergence(dense: torch.Tensor, compressed: torch.Tensor) -> float:
    """Compute the mean over the positions of a sequence `[tokens, vocab]` except the last."""
    return float(divergence(dense[:-1], compressed[:-1]).mean())


class Calibration:
    """Token sequences with the dense model's largest logits at each position, computed once.

    Args:
        sequences: token ids. top: logits that are kept; with a smaller vocabulary it is the whole distribution.
    """

    def __init__(self, model: PreTrainedModel, sequences: Sequence[Sequence[int]], top: int = TOP) -> None:
        self.model = model
        self.ids = [torch.tensor(each) for each in sequences if len(each) > 1]
        if not self.ids:
            raise ValueError("the calibration texts have no sequence of two tokens")
        self.values: list[torch.Tensor] = []
        self.places: list[torch.Tensor] = []
        for each in self.ids:
            logits = self._logits(each)
            found = logits.topk(min(top, logits.shape[-1]), -1)
            self.values.append(found.values)
            self.places.append(found.indices)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    @torch.inference_mode()
    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(input_ids=ids[None].to(self.model.device), use_cache=False).logits
        return found[0].float().cpu()

    def minibatch(self, tokens: int, rng: random.Random) -> list[tuple[int, int]]:
        """Draw different sequences with as many tokens in all, the last one cut: places and lengths."""
        found, left = [], tokens
        for place in rng.sample(range(len(self.ids)), len(self.ids)):
            length = min(len(self.ids[place]), left)
            if length > 1:
                found.append((place, length))
            left -= length
            if left <= 0:
                break
        return found

    def score(self, batch: Sequence[tuple[int, int]]) -> float:
        """Compute the mean divergence of the model as it is now, in nats a token."""
        total, count = 0.0, 0
        for place, length in batch:
            logits = self._logits(self.ids[place][:length]).gather(-1, self.places[place][:length])
            own = sequence_divergence(self.values[place][:length], logits)
            total, count = total + own * (length - 1), count + length - 1
        return total / max(count, 1)

    def run(self, batch: Sequence[tuple[int, int]]) -> None:
        """Run the model over sequences, for hooks that look on."""
        for place, length in batch:
            self._logits(self.ids[place][:length])

    def whole(self) -> float:
        """Score on all texts."""
        return self.score([(place, len(ids)) for place, ids in enumerate(self.ids)])
