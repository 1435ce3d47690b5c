"""From raw logits to drawn tokens: batched pure functions on `[rows, vocab]` float32 logits.

Bias, minimum length and penalties act on the raw logits; then come temperature, truncations, `min_p`, `top_k` and
`top_p`, and one draw (`engines.transforms` has the whole order). What no row asks for is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engines.base import Sampling
from engines.picking import pick
from engines.temperature import adapted
from engines.transforms import truncate, truncations
from entropy import truncation
from entropy.geometry import Geometry
from entropy.sending import Array, send
from entropy.truncation import Crop


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
        return s.top_p >= 1.0 and s.min_p <= 0.0 and s.top_k <= 0 and not truncations(s.transforms)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn, `[rows]` each: token ids, and what a truncation left to draw from: how many tokens (0 in a row
    without one), and their entropy in nats. None where no row was truncated."""

    tokens: torch.Tensor
    kept: torch.Tensor | None = None
    crop_entropy: torch.Tensor | None = None


def draw(
    logits: torch.Tensor,
    rows: Sequence[Row],
    geometry: Geometry | None = None,
    entropy: torch.Tensor | None = None,
) -> Drawn:
    """Draw one token a row. A row's token depends on its own logits, its seed and its position in the answer only.

    Args:
        logits: `[rows, vocab]` float32, raw; masked tokens are `-inf`.
        geometry: the whitened embeddings, where a row's transforms may need them.
        entropy: `[rows]` nats of the raw distributions, where a row's temperature follows it.
    """
    touched = [i for i, row in enumerate(rows) if not row.untouched]
    if touched:
        logits = logits.clone()
        for i in touched:
            _touch(logits[i], rows[i])
    sampled = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if len(sampled) == len(rows):
        return _sample(logits, rows, geometry, entropy)
    tokens = logits.argmax(dim=-1)
    if not sampled:
        return Drawn(tokens)
    index = send(sampled, logits.device)
    own = None if entropy is None else entropy[index]
    drawn = _sample(logits[index], [rows[i] for i in sampled], geometry, own)
    tokens[index] = drawn.tokens
    if drawn.kept is None or drawn.crop_entropy is None:
        return Drawn(tokens)
    kept, entropy = torch.zeros_like(tokens), logits.new_zeros(len(rows))
    kept[index], entropy[index] = drawn.kept, drawn.crop_entropy
    return Drawn(tokens, kept, entropy)


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


def _sample(
    logits: torch.Tensor, rows: Sequence[Row], geometry: Geometry | None, entropy: torch.Tensor | None
) -> Drawn:
    samplings = [row.sampling for row in rows]
    base = send([max(s.temperature, 1e-5) for s in samplings], logits.device)
    temperatures = adapted(base, [s.transforms for s in samplings], entropy)
    seeds = np.array([s.seed & 0xFFFF_FFFF_FFFF_FFFF for s in samplings], dtype=np.uint64)
    positions = np.array([row.position for row in rows], dtype=np.uint64)
    points = send(uniform(seeds, positions), logits.device)
    if all(row.untruncated for row in rows):
        return Drawn(pick(logits, temperatures, points))
    tempered = logits / temperatures[:, None]
    crop = _native(truncate(tempered, [s.transforms for s in samplings], geometry, temperatures), samplings)
    return Drawn(pick(crop.logits, torch.ones_like(base), points), crop.kept, crop.entropy)


def _native(crop: Crop, samplings: Sequence[Sampling]) -> Crop:
    """`min_p`, then `top_k`, then `top_p`, each on what was left before it, in the rows that ask for it."""
    steps = (
        (truncation.min_p, [s.min_p for s in samplings], [s.min_p > 0 for s in samplings]),
        (truncation.top_k, [s.top_k for s in samplings], [s.top_k > 0 for s in samplings]),
        (truncation.top_p, [s.top_p for s in samplings], [s.top_p < 1 for s in samplings]),
    )
    for function, numbers, asked in steps:
        chosen = [i for i, wanted in enumerate(asked) if wanted]
        if not chosen:
            continue
        parameter = send([numbers[i] for i in chosen], crop.logits.device)
        if len(chosen) == len(samplings):
            crop = function(crop.logits, parameter)
            continue
        index = send(chosen, crop.logits.device)
        for whole, own in zip(crop, function(crop.logits[index], parameter), strict=True):
            whole[index] = own
    return crop


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
