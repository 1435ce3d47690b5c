"""EARL: the policy gradient goes through the most uncertain tokens of each response alone.

EARL: Entropy-Aware RL Alignment of LLMs for Reliable RTL Code Generation, arXiv 2511.12033. There is no code, and only
the abstract and a summary were at hand: from them come the threshold on entropy inside each response, rewards that
tools verify, and a KL term. Everything else is reconstructed. With H the old policy's entropy at each token:

    tau_i = the (1 - share) quantile of H over the valid tokens of response i, interpolated linearly
    g     = [H >= tau_i]                       at least one token; all of them where all are alike
    loss  = sum(g min(r A, clip(r, 0.8, 1.28) A)) / (all valid tokens), + 1e-3 KL(policy || start), not gated

`scope="batch"` takes one quantile over the whole step, the 80/20 rule as TRL has it: a response that is certain
throughout is then not learned from, while `response` trains the same share of each. `anneal` is ours: the share falls
linearly from 1 to `share` over that part of the training, so that confident mistakes are repaired before the gate
closes; they get no gradient afterwards, which is the price of the method.

When: long outputs that are mostly forced (code, hardware description, anything with a grammar), where the start model
knows the boilerplate. The reward for Verilog is in training/tasks/verilog.py. Cost: none but the reference
model's pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from waver.training.rl.batch import Batch
from waver.training.rl.method import Method
from waver.training.rl.quantiles import quantile
from waver.training.strict import Strict


class Parameters(Strict):
    share: float = Field(0.2, gt=0, le=1)
    """Of the tokens, to learn from."""
    scope: Literal["response", "batch"] = "response"
    anneal: float = Field(0.0, ge=0, le=1)
    """The part of the training over which the share comes down from 1."""


def share_now(progress: float, share: float = 0.2, anneal: float = 0.0) -> float:
    """Return the share at that part of the training."""
    return share if progress >= anneal else 1 - (1 - share) * progress / anneal


def thresholds(
    entropy: torch.Tensor, mask: torch.Tensor, share: float = 0.2, scope: Literal["response", "batch"] = "response"
) -> torch.Tensor:
    """Return tau, `[B, 1]` nats: for each row or, the same for all, of the valid tokens of the batch. NaN without
    any."""
    if scope == "batch":
        return quantile(entropy[mask > 0], 1 - share).expand(len(entropy), 1)
    valid = entropy.masked_fill(mask == 0, torch.nan)
    return valid.nanquantile(1 - share, dim=1, keepdim=True)


def gate(
    entropy: torch.Tensor, mask: torch.Tensor, share: float = 0.2, scope: Literal["response", "batch"] = "response"
) -> torch.Tensor:
    """Select the tokens to learn from, `[B, T]` bool; never padding."""
    return (entropy >= thresholds(entropy, mask, share, scope)) & (mask > 0)


def method(p: Parameters) -> Method:
    def passes(batch: Batch) -> torch.Tensor:
        return gate(batch.entropy, batch.mask, share_now(batch.progress, p.share, p.anneal), p.scope)

    def report(batch: Batch) -> dict[str, float]:
        open_, shut = passes(batch), ~passes(batch) & (batch.mask > 0)
        return {
            "kept": float(open_.sum() / batch.mask.sum().clamp(min=1)),
            "kept_entropy": float(batch.entropy.masked_fill(~open_, 0.0).sum() / open_.sum().clamp(min=1)),
            "dropped_entropy": float(batch.entropy.masked_fill(~shut, 0.0).sum() / shut.sum().clamp(min=1)),
        }

    return Method(
        name="earl",
        paper="arXiv 2511.12033",
        summary="learns from the most uncertain tokens of each response only",
        reads=frozenset({"entropy", "step"}),
        token_weight=lambda batch: passes(batch).to(batch.mask.dtype),
        report=report,
        defaults={"clip_low": 0.2, "clip_high": 0.28, "kl": 1e-3},
    )
