"""Measure exactly what a target accepts of a draft model on given texts: both distributions at every position, without
drawing anything, and how acceptance falls with the target's entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from waver.training.draft.losses import acceptance, accepted_length, chains, greedy_acceptance
from waver.training.texts import IGNORED, Text, padded


@dataclass(frozen=True)
class Line:
    """A least-squares line through acceptance (or accepted length) against the target's entropy in nats."""

    at_zero: float
    slope: float


@dataclass(frozen=True)
class Acceptance:
    """Means over positions: acceptance of sampled and of greedy drafts, entropies in nats of target and draft; means
    over runs of gamma positions: accepted drafts of either kind; and their lines against the target's entropy."""

    sampled: float
    greedy: float
    accepted: float
    greedy_accepted: float
    target_entropy: float
    draft_entropy: float
    sampled_line: Line
    greedy_line: Line
    positions: int


@torch.inference_mode()
def measure(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    texts: Sequence[Text],
    gamma: int,
    temperature: float = 1.0,
    batch: int = 8,
    advance: Callable[[int], None] = lambda rows: None,
) -> Acceptance:
    """Measure a draft model on the learned tokens of texts; both are read at the same temperature."""
    target.eval()
    was_training = draft.training
    draft.eval()
    rows: list[Tensor] = []
    runs: list[Tensor] = []
    for place in range(0, len(texts), batch):
        made = padded(texts[place : place + batch])
        mask = made["labels"][:, 1:] != IGNORED
        logp, logq = (log_probabilities(model, made, temperature).cpu() for model in (target, draft))
        p, q = logp.exp(), logq.exp()
        found = torch.stack([acceptance(p, q), greedy_acceptance(p, q), _entropy(logp), _entropy(logq)], -1)
        rows.append(found[mask])
        width = min(gamma, mask.shape[1])
        for column in (0, 1):
            alpha, whole = chains(found[..., column], mask, width)
            runs.append(torch.stack([torch.full((int(whole.sum()),), column), accepted_length(alpha)[whole]], -1))
        advance(len(mask))
    draft.train(was_training)
    table, lengths = torch.cat(rows).double(), torch.cat(runs).double()
    mean = table.mean(0).tolist()
    sampled, greedy = (float(lengths[lengths[:, 0] == column, 1].mean()) for column in (0, 1))
    lines = [line(table[:, 2], table[:, column]) for column in (0, 1)]
    return Acceptance(mean[0], mean[1], sampled, greedy, mean[2], mean[3], lines[0], lines[1], len(table))


def log_probabilities(model: PreTrainedModel, made: dict[str, Tensor], temperature: float) -> Tensor:
    """Compute log-probabilities at the positions before each token but the first, `[N, T - 1, vocab]`."""
    inputs = {key: made[key].to(model.device) for key in ("input_ids", "attention_mask")}
    logits: Tensor = model(**inputs, use_cache=False).logits[:, :-1]
    return (logits.float() / temperature).log_softmax(-1)


def _entropy(logp: Tensor) -> Tensor:
    return -(logp.exp() * logp).sum(-1)


def line(x: Tensor, y: Tensor) -> Line:
    """Fit a line by least squares; flat where x does not vary."""
    apart = x - x.mean()
    size = float(apart.square().sum())
    slope = float((apart * (y - y.mean())).sum()) / size if size else 0.0
    return Line(float(y.mean()) - slope * float(x.mean()), slope)
