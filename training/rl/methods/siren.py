"""SIREN: hold the entropy of the few open positions where it was at the first step.

With p the distribution at a position (nats throughout):

- E_t: the entropy of p restricted to its nucleus, the smallest set of mass >= `mass`, and renormalised
- kept: per row, the positions with E_t > the `quantile` of the row's E (strictly; linear interpolation)
- Ebar: the mean over rows of the mean E of the row's kept positions; a row that keeps none counts as 0
- loss += `coefficient` (Ebar - anchor)^2, where the anchor is Ebar at step 1 over the whole batch

The set and the quantile are not differentiated: no logit outside the nucleus gets a gradient. Policy loss and
advantages stay as they are.

Source: arXiv 2509.25133; the structure is that of its released code. `released=True` leaves out the token that crosses
`mass`, as the code does and as its published numbers came about: E is then 0 wherever two tokens suffice. At most the
`cap` likeliest tokens are considered. Ebar is that of the whole optimizer batch, however many micro-batches and
processes share it; in the code each micro-batch has its own, so that the square is larger by the variance among them.
The anchor is that of the rows that filters have left. Reconstructed: the nucleus by its usual meaning.

Use it where a plain entropy bonus either explodes or does not hold. On base models of very low or high entropy set the
`anchor` yourself. It pulls down as well as up. The paper stands on `dr_grpo`. Costs a sort of the vocabulary at each
position, with gradient; with several micro-batches or processes one more forward pass over the rows of every update but
the first of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from waver.training.rl import Batch, Measure, Method, Settings, Strict

EBAR = "siren_mean"


class Parameters(Strict):
    mass: float = Field(0.8, gt=0, le=1)
    quantile: float = Field(0.8, ge=0, lt=1)
    """0.8 keeps about the fifth of a row with the most entropy."""
    coefficient: float = Field(0.005, ge=0)
    anchor: float | None = Field(None, ge=0)
    """Value at which to hold Ebar; measured at the first step if left out."""
    released: bool = False
    cap: int = Field(10_000, ge=2)


@dataclass(frozen=True)
class NucleusEntropy:
    """The entropy inside the nucleus of `[..., vocab]` logits, `[...]`."""

    mass: float = 0.8
    released: bool = False
    cap: int = 10_000

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        s = logits.softmax(-1).topk(min(self.cap, logits.shape[-1]), -1).values
        c = s.detach().cumsum(-1)
        inside = s * (c < self.mass if self.released else c - s.detach() < self.mass)
        q = inside / inside.sum(-1, keepdim=True).clamp(min=1e-12)
        return -(q * q.clamp(min=1e-12).log()).sum(-1)


def peaks(entropy: torch.Tensor, mask: torch.Tensor, quantile: float) -> torch.Tensor:
    """Return 1 where a token's entropy is above the quantile of its row's, `[B, T]`."""
    entropy, valid = entropy.detach(), mask > 0
    bar = entropy.masked_fill(~valid, torch.nan).nanquantile(quantile, 1, keepdim=True)
    return ((entropy > bar) & valid).to(entropy.dtype)


def mean_peak(entropy: torch.Tensor, mask: torch.Tensor, quantile: float) -> torch.Tensor:
    """Return ebar; rows without a valid token do not count."""
    kept = peaks(entropy, mask, quantile)
    of_row = (entropy.masked_fill(mask == 0, 0.0) * kept).sum(1) / kept.sum(1).clamp(min=1)
    return of_row.sum() / (mask.sum(1) > 0).sum().clamp(min=1)


def method(p: Parameters) -> Method:
    state: dict[str, Any] = {} if p.anchor is None else {"anchor": p.anchor}

    def drop_anchor(batch: Batch) -> Batch:
        if "anchor" not in state:
            state["anchor"] = float(mean_peak(batch.measures["nucleus_entropy"], batch.mask, p.quantile))
        return batch

    def average(batch: Batch, settings: Settings) -> Mapping[str, torch.Tensor]:
        return {EBAR: mean_peak(batch.live["nucleus_entropy"], batch.mask, p.quantile).expand(len(batch))}

    def pull(batch: Batch, settings: Settings) -> torch.Tensor:
        share = float((batch.lengths > 0).sum()) / (batch.totals["rows"] or 1.0)
        part = mean_peak(batch.live["nucleus_entropy"], batch.mask, p.quantile)
        # (Ebar - anchor)^2, with Ebar the sum of share * part over all micro-batches: its share of value and gradient.
        off = batch.measures[EBAR][0] - state["anchor"]
        return p.coefficient * share * (off.square() + 2 * off * (part - part.detach()))

    def report(batch: Batch) -> dict[str, float]:
        entropy = batch.measures["nucleus_entropy"]
        kept = peaks(entropy, batch.mask, p.quantile).sum() / batch.mask.sum().clamp(min=1)
        return {
            "anchor": state["anchor"],
            "entropy": float(mean_peak(entropy, batch.mask, p.quantile)),
            "kept": float(kept),
        }

    return Method(
        name="siren",
        paper="arXiv 2509.25133",
        summary="pulls the nucleus entropy of each row's most uncertain tokens to its value at the first step",
        step_controller=drop_anchor,
        update_controller=average,
        extra_loss=pull,
        report=report,
        state=state,
        measures=(Measure("nucleus_entropy", NucleusEntropy(p.mass, p.released, p.cap), live=True),),
    )
