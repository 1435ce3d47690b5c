"""Learn from the tokens that are hard for how uncertain the model is: Entropy-SFT of Light-IF (arXiv 2508.03178).

Of the N learned tokens of a batch, with CE = -ln p(token), H the entropy of p, both in nats:

    delta = CE - weight H                       no gradient
    kept: the max(int(share N), 1) tokens with the largest delta
    loss = mean of CE over the kept tokens

A token that the model predicts already, or whose CE is what its own uncertainty makes one expect, is left out: it is
not sharpened further, so that entropy is left for reinforcement learning. Entropy enters the choice alone. The loss of
all tokens ends higher than after plain tuning, which is the price and not a fault. With gradient accumulation the sum
is divided by int(share N) of all tokens of the update; the choice is still within each batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from waver.entropy import shannon_entropy
from waver.training.texts import IGNORED

SHARE, WEIGHT = 0.8, 0.8
"""Values of the paper's commands."""
CHUNK = 2**24
"""Logits of which entropies are computed at a time."""


def chosen(ce: torch.Tensor, entropy: torch.Tensor, share: float = SHARE, weight: float = WEIGHT) -> torch.Tensor:
    """Return the places of the kept tokens, in no order.

    Args:
        ce, entropy: `[N]` nats.
    """
    delta = (ce - weight * entropy).detach()
    return delta.topk(max(int(share * len(delta)), 1)).indices


def loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    share: float = SHARE,
    weight: float = WEIGHT,
    total: int | None = None,
) -> torch.Tensor:
    """Return the mean cross-entropy of the kept tokens; 0 without any.

    Args:
        logits, labels: `[N, vocab]` and `[N]`, of learned tokens. total: those of the whole accumulated batch, if these
            are a part of it.
    """
    if not len(labels):
        return logits.sum() * 0
    ce = cross_entropy(logits, labels, reduction="none")
    rows = max(1, CHUNK // logits.shape[-1])
    entropy = torch.cat([shannon_entropy(part) for part in logits.detach().split(rows)])
    kept = ce[chosen(ce, entropy, share, weight)]
    return kept.mean() if total is None else kept.sum() / max(int(total * share), 1)


class HardTokensTrainer(Trainer):
    """A `Trainer` with that loss.

    Args:
        share: of the learned tokens, to keep. weight: of the entropy in the choice.
    """

    def __init__(self, *args: Any, share: float = SHARE, weight: float = WEIGHT, **options: Any) -> None:
        super().__init__(*args, **options)
        self.share, self.weight = share, weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"][:, 1:]
        outputs = model(**{name: x for name, x in inputs.items() if name != "labels"}, use_cache=False)
        valid = labels != IGNORED
        total = None if self.args.gradient_accumulation_steps == 1 else num_items_in_batch
        found = loss(outputs.logits[:, :-1][valid].float(), labels[valid], self.share, self.weight, total)
        return (found, outputs) if return_outputs else found
