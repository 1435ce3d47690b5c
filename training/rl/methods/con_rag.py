"""PS-GRPO of Con-RAG (arXiv 2510.04392): GRPO whose groups are the wordings of a question.

The reward of an answer is its mean similarity to the answers to the question's OTHER wordings (`--task paraphrases`,
`training/tasks/consistency`), plus the F1 against a known answer where there is one. It is normalised within the
answers to the same wording, with the population's standard deviation:

    A_ij = (r_ij - mean_i) / std_i,  0 where std_i < 1e-8

Clip, KL (k3) and the mean over the tokens of each answer are plain GRPO; whether the paper divides by the length is not
certain (`aggregation=seq-mean-token-sum` does not). Clip 0.2 and KL 0.04 are ours.

When: a model that answers from retrieved passages and says one thing to one wording and another to the next. The
retriever stays as it is. Being always wrong in the same way is rewarded, too: bring answers where they are known, and
watch `consistency/right` beside `consistency/wrong`. Entropy falls fast; raise `kl` where it falls too far. Of short
answers many groups agree and teach nothing (`con_rag/silent`). Cost: comparisons of short texts, and the reference's
pass.
"""

from __future__ import annotations

import torch
from pydantic import Field

from waver.training.rl.batch import Batch
from waver.training.rl.method import Method
from waver.training.strict import Strict


class Parameters(Strict):
    eps: float = Field(1e-8, gt=0)
    """Added to the standard deviation, and the least that one may be."""
    sample: bool = False
    """Divide by n - 1 in it, with 1e-4 added, as TRL does."""


def advantages(reward: torch.Tensor, group: torch.Tensor, eps: float = 1e-8, sample: bool = False) -> torch.Tensor:
    """Return the rewards normalised within their groups, `[B]`; 0 in a group without contrast."""
    places = group.unique(return_inverse=True)[1]
    count = places.bincount().to(reward.dtype)
    zeros = torch.zeros_like(count)
    mean = zeros.index_add(0, places, reward) / count
    off = reward - mean[places]
    variance = zeros.index_add(0, places, off.square()) / (count - 1 if sample else count).clamp(min=1)
    std = variance.sqrt()[places]
    return torch.where(std < eps, 0.0, off / (std + (1e-4 if sample else eps)))


def method(p: Parameters) -> Method:
    def normalised(batch: Batch) -> torch.Tensor:
        return advantages(batch.reward, batch.group, p.eps, p.sample)

    def report(batch: Batch) -> dict[str, float]:
        silent = (batch.advantage == 0).all(1)
        return {"silent": float(silent.float().mean())}

    return Method(
        name="con_rag",
        paper="arXiv 2510.04392",
        summary="rewards answers that agree with those to other wordings of the question, each wording a group",
        advantage=normalised,
        report=report,
        defaults={
            "clip_low": 0.2,
            "clip_high": 0.2,
            "dual_clip": None,
            "kl": 0.04,
            "aggregation": "seq-mean-token-mean",
        },
    )
