"""From raw logits to drawn tokens: batched pure functions on `[rows, vocab]` float32 logits.

The order is vLLM's: bias, minimum length and penalties act on the raw logits; then temperature, `min_p`, `top_k` and
`top_p`; then one draw. What no row asks for is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engines.base import Sampling


@dataclass(frozen=True, slots=True)
class Row:
    """One row to draw for: how, after which tokens (the answer begins at `start`), and what would end the answer."""

    sampling: Sampling
    ids: Sequence[int]
    start: int
    ends: tuple[int, ...]

    @property
    def position(self) -> int:
        """Where in the answer the token to draw will stand."""
        return len(self.ids) - self.start

    @property
    def untouched(self) -> bool:
        """Whether the raw logits are the ones to draw from (before temperature and truncation)."""
        s = self.sampling
        penalised = s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0
        return not (penalised or s.logit_bias or self.position < s.min_tokens)

    @property
    def untruncated(self) -> bool:
        s = self.sampling
        return s.top_p >= 1.0 and s.min_p <= 0.0 and s.top_k <= 0


def draw(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Draw one token a row.

    Args:
        logits: `[rows, vocab]` float32, raw; masked tokens are `-inf`.

    Returns:
        `[rows]` token ids. A row's token depends on its own logits, its seed and its position in the answer only.
    """
    touched = [i for i, row in enumerate(rows) if not row.untouched]
    if touched:
        logits = logits.clone()
        for i in touched:
            _touch(logits[i], rows[i])
    tokens = logits.argmax(dim=-1)
    sampled = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if sampled:
        index = torch.tensor(sampled, device=logits.device)
        tokens[index] = _sample(logits[index], [rows[i] for i in sampled])
    return tokens


def _touch(logits: torch.Tensor, row: Row) -> None:
    """Bias, minimum length and penalties, in place on one `[vocab]` row."""
    s = row.sampling
    for token, bias in s.logit_bias.items():
        logits[token] += bias
    if row.position < s.min_tokens:
        barred = logits.index_fill(0, torch.tensor(row.ends, dtype=torch.long, device=logits.device), -torch.inf)
        if barred.max() > -torch.inf:  # a grammar may allow nothing but the end
            logits.copy_(barred)
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(row.ids)), device=logits.device)
        old = logits[seen]
        logits[seen] = torch.where(old > 0, old / s.repetition_penalty, old * s.repetition_penalty)
    if row.position and (s.presence_penalty or s.frequency_penalty):
        said, counts = torch.tensor(row.ids[row.start :], device=logits.device).unique(return_counts=True)
        logits[said] -= s.presence_penalty + s.frequency_penalty * counts


def _sample(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    temperature = torch.tensor([r.sampling.temperature for r in rows], device=logits.device)
    logits = logits / temperature.clamp(min=1e-5)[:, None]
    truncated = [i for i, row in enumerate(rows) if not row.untruncated]
    if truncated:
        index = torch.tensor(truncated, device=logits.device)
        logits[index] = _truncate(logits[index], [rows[i].sampling for i in truncated])
    cumulative = logits.softmax(dim=-1).double().cumsum(dim=-1)
    seeds = np.array([r.sampling.seed & 0xFFFF_FFFF_FFFF_FFFF for r in rows], dtype=np.uint64)
    positions = np.array([r.position for r in rows], dtype=np.uint64)
    point = torch.from_numpy(uniform(seeds, positions)).to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, point, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _truncate(logits: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """`min_p`, then `top_k`, then `top_p` (each on what the one before kept); the most likely token always stays."""
    device, vocab = logits.device, logits.shape[-1]
    ordered, order = logits.sort(dim=-1, descending=True)
    min_p = torch.tensor([s.min_p for s in samplings], device=device)[:, None]
    ordered = ordered.masked_fill(ordered < ordered[:, :1] + min_p.log(), -torch.inf)
    top_k = torch.tensor([min(s.top_k, vocab) if s.top_k > 0 else vocab for s in samplings], device=device)[:, None]
    ordered = ordered.masked_fill(torch.arange(vocab, device=device) >= top_k, -torch.inf)
    top_p = torch.tensor([s.top_p for s in samplings], device=device)[:, None]
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    ordered[:, 1:] = ordered[:, 1:].masked_fill(((before >= top_p) & (top_p < 1))[:, 1:], -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def uniform(seeds: Array, positions: Array) -> Array:
    """A number in [0, 1) for each (seed, position), both uint64: two rounds of SplitMix64, so that no state has to
    travel with a sequence from engine to engine."""
    with np.errstate(over="ignore"):
        bits: Array = _mix(_mix(seeds) + positions) >> np.uint64(11)
        return bits * 2.0**-53


def _mix(x: Array) -> Array:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
