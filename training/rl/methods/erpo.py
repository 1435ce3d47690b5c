"""ERPO (arXiv 2603.28204): a small dense credit for the pivots of an answer, in the direction that the outcome allows.

A response keeps its outcome advantage A; each token gets a correction on top. Over one prompt's group, with H the
entropy of a token, u its relative position in the row and mu, sd population statistics of all valid tokens:

    W = sigmoid(gamma (H - mu) / (sd + eps))                    gate: only pivots pass                   (eq. 8)
    s = beta (log pi - log pi_ref)                              progress since the reference             (eq. 7)
    s~ = (s - mean) / (sd + eps) within bucket floor(B u)       among tokens equally far on; 0 if alone
    Psi = W sgn(A) s~                                           anchored to the outcome                  (eq. 10)
    A' = A + eta Psi

Of what was promoted more than its peers, a right answer gives more credit and a wrong one more blame: a brake on the
collapse of entropy. While pi = pi_ref, and in groups of equal rewards, it is exactly the base.

Use it for long reasoning from a base that collapses, with eta at its small default. Cost: one pass of the reference
model over the rows, even where there is no KL term.

pi is the policy that drew the rows, so nothing carries a gradient. The paper's text was not at hand: gate and synthesis
come from a transcription, the numbers from third-party code that cites the equations, the buckets are a reconstruction
(their count too), and an extra normalisation that a summary hints at is `norm_psi`, off. beta cancels but for eps. On a
tabular toy this reconstruction learned more slowly than GRPO and kept more entropy; with eta = 1 it failed.
"""

from __future__ import annotations

import torch
from pydantic import Field

from waver.training.rl import Batch, Method, Strict
from waver.training.rl.advantages import group_index

EPS = 1e-6


class Parameters(Strict):
    gamma: float = Field(5.0, ge=0)
    """Sharpness of the gate; 0 lets half of everything through."""
    beta: float = Field(0.1, gt=0)
    """Of the log-ratio."""
    eta: float = Field(0.2, ge=0, lt=1)
    """Of the correction."""
    buckets: int = Field(10, ge=1)
    """Stretches of equal relative position."""
    norm_psi: bool = False
    """Divide the correction by its root mean square over the group."""
    smallest_spread: float = Field(0.0, ge=0)
    """Buckets whose spread of s is below this give no correction, lest noise be blown up; 1e-4 is a guard, 0 is off."""
    largest: float | None = Field(None, gt=0)
    """Upper bound of s~; 3 is a guard."""


def standardised(
    values: torch.Tensor, valid: torch.Tensor, key: torch.Tensor, smallest_spread: float = 0.0
) -> torch.Tensor:
    """Return (x - mean) / (sd + eps) among the valid tokens with the same key, `[B, T]`; 0 for one alone and outside.

    Args:
        key: `[B, T]` integer.
        smallest_spread: where sd is below it, 0 as well.
    """
    x, index, sizes = values[valid], *group_index(key[valid])
    mean = x.new_zeros(len(sizes)).index_add_(0, index, x) / sizes
    centred = x - mean[index]
    spread = (x.new_zeros(len(sizes)).index_add_(0, index, centred.square()) / sizes).sqrt()
    silent = (sizes < 2) | (spread < smallest_spread)
    out = torch.zeros_like(values)
    out[valid] = (centred / (spread[index] + EPS)).masked_fill(silent[index], 0.0)
    return out


def gate(entropy: torch.Tensor, valid: torch.Tensor, group: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return W: `[B, T]` in (0, 1); 0 on padding."""
    key = group.unsqueeze(1).expand_as(entropy)
    return (gamma * standardised(entropy, valid, key)).sigmoid() * valid


def bucket(valid: torch.Tensor, buckets: int) -> torch.Tensor:
    """Return `[B, T]`: min(floor(B t / T_i), B - 1), t counting the valid tokens of the row."""
    position = valid.long().cumsum(1) - valid.long()
    return (buckets * position // valid.sum(1, keepdim=True).clamp(min=1)).clamp(max=buckets - 1)


def progress(
    log_ratio: torch.Tensor, valid: torch.Tensor, group: torch.Tensor, buckets: int, smallest_spread: float = 0.0
) -> torch.Tensor:
    """Return s~: `[B, T]` from the scaled log-ratio s."""
    _, index = group.unique(return_inverse=True)
    key = index.unsqueeze(1) * buckets + bucket(valid, buckets)
    return standardised(log_ratio, valid, key, smallest_spread)


def correction(batch: Batch, p: Parameters) -> torch.Tensor:
    """Return psi: `[B, T]`. The sign is that of the response's advantage, not of a token's."""
    valid = batch.mask > 0
    log_ratio = p.beta * (batch.old_logprob - batch.reference).masked_fill(~valid, 0.0)
    s = progress(log_ratio, valid, batch.group, p.buckets, p.smallest_spread)
    if p.largest is not None:
        s = s.clamp(-p.largest, p.largest)
    anchor = (batch.advantage * valid).sum(1, keepdim=True).sign()
    psi = gate(batch.entropy, valid, batch.group, p.gamma) * anchor * s
    if p.norm_psi:
        index, sizes = group_index(batch.group)
        squares, tokens = (
            psi.new_zeros(len(sizes)).index_add_(0, index, x) for x in (psi.square().sum(1), valid.sum(1).to(psi))
        )
        psi = psi / ((squares / tokens.clamp(min=1)).sqrt()[index].unsqueeze(1) + EPS)
    return psi


def report(batch: Batch, p: Parameters) -> dict[str, float]:
    """Return the share of the tokens that the gate lets through, and how far the policy has moved: mean |s|."""
    valid = batch.mask > 0
    w = gate(batch.entropy, valid, batch.group, p.gamma)[valid]
    s = p.beta * (batch.old_logprob - batch.reference)[valid]
    return {"pivots": float((w > 0.5).double().mean()), "progress": float(s.abs().mean())} if len(w) else {}


def method(p: Parameters) -> Method:
    return Method(
        name="erpo",
        paper="arXiv 2603.28204",
        summary="adds to a pivot's advantage what the policy has promoted there since the reference, signed by outcome",
        reads=frozenset({"entropy"}),
        advantage_transform=lambda batch: batch.advantage + p.eta * correction(batch, p),
        report=lambda batch: report(batch, p),
        needs_reference=True,
    )
