"""SHRED (arXiv 2605.07482): make a model forget texts by distilling itself without what it finds least likely in them.

The tokens of a text with the lowest probabilities carry what is specific to it. There the true token is taken out of
the frozen model's own next-token distribution, elsewhere that stays as it is; the model is trained towards both by one
KL loss, so that no other texts are needed to keep what it can do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from waver.training.texts import Text, padded

SATURATED = 0.95
"""Mean probability of a text's tokens above which its own probabilities no longer tell what is specific to it."""


@dataclass(frozen=True)
class Demotion:
    """The rule by which targets are made.

    Args:
        share: percent of a text's tokens that are demoted, the least likely; None for 50 of answers, which have a
            question before them, and 25 of documents. skip: first tokens of a document that never are. top: the
            likeliest tokens kept of each distribution. nucleus: take out the smallest set of likeliest tokens with so
            much mass, too (the paper's variant B).
    """

    share: float | None = None
    skip: int = 8
    top: int = 64
    nucleus: float | None = None

    def share_of(self, text: Text) -> float:
        """Return the percentage for a text."""
        return self.share if self.share is not None else (25.0 if text.start == 1 else 50.0)


@dataclass(frozen=True)
class Lesson:
    """A text with the targets of its tokens from `text.start` on.

    Args:
        ids: `[learned, top]` token ids. targets: their probabilities, `[learned, top]`; 0 everywhere where all of them
            are demoted. demoted: `[learned]`, where the text is to be forgotten. probability: `[learned]`, of the true
            tokens before.
    """

    text: Text
    ids: torch.Tensor
    targets: torch.Tensor
    demoted: torch.Tensor
    probability: torch.Tensor


def demoted_positions(probability: torch.Tensor, share: float, skip: int = 0) -> torch.Tensor:
    """Mark the `share` percent, rounded up, of least probability from place `skip` on: `[positions]` bool."""
    marked = torch.zeros(len(probability), dtype=torch.bool)
    count = math.ceil(share / 100 * max(0, len(probability) - skip) - 1e-9)
    if count:
        lowest = probability[skip:].sort(stable=True).indices[:count]
        marked[skip + lowest] = True
    return marked


def demote(
    ids: torch.Tensor, top: torch.Tensor, true: torch.Tensor, demoted: torch.Tensor, nucleus: float | None = None
) -> torch.Tensor:
    """Make the target distributions: at demoted positions without the true token, and without the nucleus.

    Args:
        ids, top: `[positions, k]`, the likeliest tokens and their probabilities, falling. true: `[positions]` ids.
        demoted: `[positions]` bool.

    Returns:
        `[positions, k]`, each row sums to 1, or to 0 where nothing is left.
    """
    out = ids == true.unsqueeze(-1)
    if nucleus is not None:
        out |= top.cumsum(-1) - top < nucleus
    kept = top.masked_fill(out & demoted.unsqueeze(-1), 0.0)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp(min=torch.finfo(top.dtype).tiny), 0.0)


def divergence(logits: torch.Tensor, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute KL(target || softmax(logits)) in nats, `[positions]`; 0 where a target is empty.

    The softmax is over the whole vocabulary: over the kept tokens alone, nothing would push a demoted one down.
    """
    logprob = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1).gather(-1, ids)
    return (torch.xlogy(targets, targets) - targets * logprob).sum(-1)


@torch.inference_mode()
def token_probabilities(model: PreTrainedModel, texts: Sequence[Text], batch: int = 8) -> list[torch.Tensor]:
    """Compute the probability of each learned token of each text, `[learned]` float32."""
    return [probability for _, _, probability in _read(model, texts, 1, batch)]


def _read(
    model: PreTrainedModel, texts: Sequence[Text], top: int, batch: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return for each text the likeliest tokens, their probabilities, and those of the true tokens."""
    found = []
    model.eval()
    for place in range(0, len(texts), batch):
        part = texts[place : place + batch]
        made = {name: value.to(model.device) for name, value in padded(part).items()}
        made.pop("labels")
        logits = model(**made, use_cache=False).logits
        for row, text in enumerate(part):
            before = slice(text.start - 1, len(text.ids) - 1)
            probability = logits[row, before].float().softmax(-1)
            true = torch.tensor(text.ids[text.start :], device=probability.device).unsqueeze(-1)
            best = probability.topk(min(top, probability.shape[-1]))
            found.append((best.indices.cpu(), best.values.cpu(), probability.gather(-1, true).squeeze(-1).cpu()))
    return found


@torch.no_grad()
def lessons(
    model: PreTrainedModel, texts: Sequence[Text], rule: Demotion, reference: PreTrainedModel | None = None
) -> list[Lesson]:
    """Read every text once with the frozen model and make its targets.

    Args:
        reference: a model that never saw the texts, by which to rank their tokens; for texts that the model knows by
            heart, whose specific tokens are as likely as the others. An addition.
    """
    ranks = [None] * len(texts) if reference is None else token_probabilities(reference, texts)
    made = []
    for text, rank, (ids, top, own) in zip(texts, ranks, _read(model, texts, rule.top, 8), strict=True):
        skip = max(0, rule.skip - 1) if text.start == 1 else 0
        demoted = demoted_positions(own if rank is None else rank, rule.share_of(text), skip)
        true = torch.tensor(text.ids[text.start :])
        made.append(Lesson(text, ids, demote(ids, top, true, demoted, rule.nucleus), demoted, own))
    return made


def batch_of(made: Sequence[Lesson]) -> dict[str, torch.Tensor]:
    """Make a batch: `input_ids`, `attention_mask`, and over `[texts, longest]` of the tokens that predict learned ones
    `ids` and `targets`, `[.., top]`, with `counts` 1 where there is a target."""
    batch = padded([lesson.text for lesson in made])
    batch.pop("labels")
    shape = *batch["input_ids"].shape, made[0].ids.shape[-1]
    ids, targets, counts = torch.zeros(shape, dtype=torch.long), torch.zeros(shape), torch.zeros(shape[:2])
    for row, lesson in enumerate(made):
        before = slice(lesson.text.start - 1, len(lesson.text.ids) - 1)
        ids[row, before], targets[row, before] = lesson.ids, lesson.targets
        counts[row, before] = (lesson.targets.sum(-1) > 0).float()
    return {**batch, "ids": ids, "targets": targets, "counts": counts}


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the mean KL divergence over the tokens of a batch that have a target."""
    kept = batch["counts"] > 0
    return divergence(logits[kept], batch["ids"][kept], batch["targets"][kept]).mean()


def geometric_mean(probabilities: Sequence[torch.Tensor], where: Sequence[torch.Tensor]) -> float:
    """Return exp(mean log p) over marked tokens of several texts."""
    logs = torch.cat([p[mark].clamp(min=1e-30).log() for p, mark in zip(probabilities, where, strict=True)])
    return float(logs.mean().exp())


def words(made: Lesson, decode: Any) -> list[str]:
    """Return the demoted tokens of a text, spelt."""
    return [
        decode(token)
        for token, marked in zip(made.text.ids[made.text.start :], made.demoted.tolist(), strict=True)
        if marked
    ]
