"""Attention entropy (arXiv 2605.07660): learn from anchors first, from explorers later.

How spread the attention of one middle layer is while a token is predicted says something that the entropy of the
prediction does not (the two are nearly uncorrelated). Tokens with focused attention, anchors, have steady gradients;
tokens with diffuse attention, explorers, have erratic ones, and alone they make training collapse. For the query that
predicts a token, with a_h the attention row of head h over the n keys that it may see:

    a = mean over heads of a_h              first the mean, then the entropy
    AE = -sum a log a / log n               in [0, 1]; 0 if n = 1

    r = rank of AE among the row's tokens, 0 to 1                   (ties by position; 0.5 if there is one token)
    c = first + (last - first) step / total_steps                   -1 prefers anchors, +1 explorers
    w = exp(kappa c (2 r - 1)) / its mean over the row              halfway through it is plain DAPO

`subset` trains on a hard fifth instead, which is how the paper found this out: `random` keeps nearly all of the gain,
`anchors` are stable and end lower, `explorers` collapse in 5 of 8 runs, `entropy` (the highest predictive entropy)
fails.

Use it on DAPO, for a model with ordinary attention rows (not linear or latent attention). Explorers late in training
are the risky end: watch KL and clip fraction, and stop at `last=0.5` if they grow. Cost: one more product of queries
and keys of one layer, in the pass without gradient; fused attention returns no weights, so `chunked` recomputes them
from queries and keys, 256 queries at a time.

No code was published. From summaries that agree: the definition, the subsets and their share. Reconstructed, as the
paper's formula was not found: the soft weights, kappa, the layer (the middle one) and the scope of ranks (a response).
In many models the first token draws most attention; the literal reading keeps it, `drop_sink` takes it out, and then
both are logged. A layer with a sliding window counts the keys in it. No fall-back for a
clip fraction that doubles is built in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from waver.training.rl import Batch, Measure, Method, Strict
from waver.training.rl.unknown import Readable

NAME = "attention_entropy"
WITHOUT_SINK = "attention_entropy_without_sink"

Subset = Literal["random", "anchors", "explorers", "entropy"]


class Parameters(Strict):
    subset: Subset | None = None
    """Train on this fraction of each response only; None is the soft weight."""
    fraction: float = Field(0.2, gt=0, le=1)
    """rho, of a subset."""
    norm: Literal["kept", "all"] = "kept"
    """Of a subset: whether the loss is divided by the kept tokens or by all."""
    kappa: float = Field(math.log(2), ge=0)
    """Raw weights reach from exp(-kappa) to exp(kappa)."""
    first: float = Field(-1.0, ge=-1, le=1)
    """c at the start."""
    last: float = Field(1.0, ge=-1, le=1)
    """c at the end."""
    layer: int | None = Field(None, ge=0)
    """None is the middle one."""
    drop_sink: bool = False
    """Leave the first token of the sequence out, and divide by log(n - 1)."""
    seed: int = 0
    """Of the random subset."""


def spread(weights: torch.Tensor, visible: torch.Tensor, sink: torch.Tensor | None = None) -> torch.Tensor:
    """Return AE of each query, `[B, queries]`; 0 for one that sees one key or none.

    Args:
        weights: `[B, heads, queries, keys]`. visible: `[B, 1, queries, keys]` bool.
        sink: `[B]` the key to leave out, the mean over the heads being scaled up to 1 without it.
    """
    seen = visible.expand(len(weights), 1, *weights.shape[2:]).squeeze(1)
    if sink is not None:
        seen = seen & (torch.arange(seen.shape[2], device=seen.device) != sink[:, None, None])
    mean = weights.to(torch.promote_types(weights.dtype, torch.float32)).mean(1).masked_fill(~seen, 0.0)
    if sink is not None:
        mean = mean / mean.sum(-1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
    keys = seen.sum(-1)
    return (torch.special.entr(mean).sum(-1) / keys.clamp(min=2).log()).masked_fill(keys < 2, 0.0)


def first_key(visible: torch.Tensor) -> torch.Tensor:
    """Return `[B]`: the first key that any query sees. Padding on the left is seen by none."""
    return visible.any(2).squeeze(1).long().argmax(1)


@dataclass(frozen=True)
class AttentionEntropy:
    """The measure: `spread`, with or without the first token."""

    drop_sink: bool = False

    def __call__(self, weights: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        visible = visible.expand(len(weights), -1, -1, -1)
        return spread(weights, visible, first_key(visible) if self.drop_sink else None)


@torch.no_grad()
def chunked(
    query: torch.Tensor,
    key: torch.Tensor,
    visible: torch.Tensor,
    *,
    drop_sink: bool = False,
    scale: float | None = None,
    chunk: int = 256,
) -> torch.Tensor:
    """Return AE from queries and keys, as they are after rotary embedding and normalisation; softmax in float32.

    Memory: B * heads * chunk * keys numbers.

    Args:
        query: `[B, heads, queries, size]`. key: `[B, key heads, keys, size]`; fewer heads are shared as in GQA.
        visible: `[B, 1, queries, keys]` bool. scale: 1 / sqrt(size) if left out.

    Returns:
        `[B, queries]`; 0 for a query that sees nothing.
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1).float()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    visible = visible.expand(len(query), -1, -1, -1)
    sink = first_key(visible) if drop_sink else None  # of all queries: a chunk alone may not see it
    parts = []
    for start in range(0, query.shape[2], chunk):
        part, seen = query[:, :, start : start + chunk].float(), visible[:, :, start : start + chunk]
        scores = (part @ key.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
        parts.append(spread(scores.softmax(-1).nan_to_num(0.0), seen, sink))
    return torch.cat(parts, 1)


def ranks(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Place of each valid token among those of its row by rising value, `[B, T]` from 0 on; ties by position.

    Padding comes after them.
    """
    order = values.masked_fill(mask == 0, torch.inf).argsort(stable=True, dim=1)
    return order.argsort(1)


def soft(values: torch.Tensor, mask: torch.Tensor, c: float, kappa: float) -> torch.Tensor:
    """Return w: `[B, T]`, 1 on average over each row's valid tokens and 0 on padding."""
    size = mask.sum(1, keepdim=True)
    r = torch.where(size > 1, ranks(values, mask) / (size - 1).clamp(min=1), 0.5)
    raw = (kappa * c * (2 * r - 1)).exp() * mask
    return raw * size / raw.sum(1, keepdim=True).clamp(min=torch.finfo(raw.dtype).tiny)


def lowest(values: torch.Tensor, mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return 1 for the max(1, ceil(fraction T_i)) lowest valid tokens of each row, `[B, T]`."""
    # The share of a row may be a whole number that rounding has lifted by a hair.
    kept = (fraction * mask.sum(1, keepdim=True) - 1e-9).ceil().clamp(min=1)
    return (ranks(values, mask) < kept).to(mask.dtype) * mask


def method(p: Parameters) -> Method:
    name = WITHOUT_SINK if p.drop_sink else NAME
    random = torch.Generator().manual_seed(p.seed)
    state: dict[str, Any] = {"generator": random.get_state()} if p.subset == "random" else {}

    def draw(like: torch.Tensor) -> torch.Tensor:
        random.set_state(state["generator"])
        drawn = torch.rand(like.shape, generator=random, dtype=torch.float64).to(like.device)
        state["generator"] = random.get_state()
        return drawn

    def weight(batch: Batch) -> torch.Tensor:
        values = batch.measures[name].to(batch.mask.dtype)
        match p.subset:
            case None:
                return soft(values, batch.mask, p.first + (p.last - p.first) * batch.progress, p.kappa)
            case "random":
                return lowest(draw(batch.mask), batch.mask, p.fraction)
            case "anchors":
                return lowest(values, batch.mask, p.fraction)
            case "explorers":
                return lowest(-values, batch.mask, p.fraction)
            case "entropy":
                return lowest(-batch.entropy, batch.mask, p.fraction)

    def report(batch: Batch) -> dict[str, float]:
        valid = batch.mask > 0
        return {name: float(batch.measures[name][valid].mean()) for name in (m.name for m in measures)}

    reads: dict[Subset | None, Readable] = {None: "step", "entropy": "entropy"}
    measures = tuple(
        Measure(NAME if of == AttentionEntropy() else WITHOUT_SINK, of, source="attention", layer=p.layer)
        for of in (AttentionEntropy(), *([AttentionEntropy(True)] if p.drop_sink else []))
    )
    return Method(
        name="attention_entropy",
        paper="arXiv 2605.07660",
        summary="weighs tokens by how spread the attention behind them is: focused ones first, diffuse ones later",
        reads=frozenset({reads[p.subset]} if p.subset in reads else ()),
        token_weight=weight,
        report=report,
        state=state,
        measures=measures,
        defaults={"denominator": "selected" if p.subset and p.norm == "kept" else "all"},
    )
