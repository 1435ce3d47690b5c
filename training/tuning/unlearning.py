"""Other ways to make a model forget, to compare with, and attacks on what is said to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from waver.training.texts import IGNORED, Text, padded


def sequence_logprob(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum the log-probabilities of the learned tokens of each row: `[rows, tokens, vocab]`, `[rows, tokens]` ->
    `[rows]`."""
    labels = labels[:, 1:]
    chosen = logits[:, :-1].float().log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (chosen * (labels != IGNORED)).sum(-1)


def ascent_loss(logprob: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the negative of the usual loss, the mean log-probability of a token: gradient ascent."""
    return logprob.sum() / (labels[:, 1:] != IGNORED).sum()


def npo_loss(logprob: torch.Tensor, reference: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    """Compute negative preference optimisation's loss (arXiv 2404.05868, eq. 3): -2/beta mean log sigmoid(-beta log
    pi/pi_ref), of sums over rows, `[rows]`."""
    return -2 / beta * logsigmoid(-beta * (logprob - reference)).mean()


def min_k(probability: torch.Tensor, share: float = 0.2) -> float:
    """Compute the mean log-probability of a text's least likely tokens (Min-K% Prob, arXiv 2310.16789): higher for
    texts that were trained on."""
    count = max(1, round(share * len(probability)))
    return float(probability.clamp(min=1e-30).log().sort().values[:count].mean())


def relearn(model: PreTrainedModel, texts: Sequence[Text], steps: int, rate: float, batch: int) -> None:
    """Train a forgetful model on texts again, as somebody would who wants back what it has forgotten."""
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=rate)
    for step in range(steps):
        part = [texts[(step * batch + each) % len(texts)] for each in range(min(batch, len(texts)))]
        made = {name: value.to(model.device) for name, value in padded(part).items()}
        optimizer.zero_grad()
        model(**made, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
