"""Draw tokens from raw logits: batched pure functions on `[rows, vocab]` float32 logits.

Bias, minimum length and penalties act on the raw logits; then come temperature, truncations, `min_p`, `top_k` and
`top_p`, and one draw (`waver.engines.transforms` has the whole order). What no row asks for is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from waver.devices import Array, to_device
from waver.engines.base import Sampling
from waver.engines.inverse_cdf import sample
from waver.engines.temperature import adapted_temperatures
from waver.engines.token_counts import CountsPair, TokenCounts
from waver.engines.transforms import truncate, truncations
from waver.entropy import truncation
from waver.entropy.geometry import Geometry
from waver.entropy.truncation import Crop


@dataclass(frozen=True, slots=True)
class Row:
    """One row to draw for: its sampling, the tokens before it (the answer begins at `start`), and the ends of the
    answer. `counts` that are kept from step to step make penalties faster."""

    sampling: Sampling
    ids: Sequence[int]
    start: int
    ends: tuple[int, ...]
    counts: CountsPair | None = None

    @property
    def position(self) -> int:
        """The position in the answer of the token to draw."""
        return len(self.ids) - self.start

    @property
    def unadjusted(self) -> bool:
        """Return whether nothing is added to the raw logits before temperature and truncation."""
        s = self.sampling
        penalised = s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0
        barred = s.allowed_token_ids or s.bad_words
        return not (penalised or s.logit_bias or barred or self.position < s.min_tokens)

    @property
    def untruncated(self) -> bool:
        """Return whether no token is taken away."""
        s = self.sampling
        return s.top_p >= 1.0 and s.min_p <= 0.0 and s.top_k <= 0 and not truncations(s.transforms)


TokenAmounts = tuple[int, Array, Array]
"""A row, tokens in it, and an amount for each of them."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The result of a draw, `[rows]` each: token ids, and how many tokens a truncation left (0 in a row without one),
    with their entropy in nats; the latter two are None where no row was truncated."""

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
    adjusted = [i for i, row in enumerate(rows) if not row.unadjusted]
    if adjusted:
        logits = _adjusted(logits, rows, adjusted)
    sampled = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if len(sampled) == len(rows):
        return _sample(logits, rows, geometry, entropy)
    tokens = logits.argmax(dim=-1)
    if not sampled:
        return Drawn(tokens)
    index = to_device(sampled, logits.device)
    own = None if entropy is None else entropy[index]
    drawn = _sample(logits[index], [rows[i] for i in sampled], geometry, own)
    tokens[index] = drawn.tokens
    if drawn.kept is None or drawn.crop_entropy is None:
        return Drawn(tokens)
    kept, entropy = torch.zeros_like(tokens), logits.new_zeros(len(rows))
    kept[index], entropy[index] = drawn.kept, drawn.crop_entropy
    return Drawn(tokens, kept, entropy)


def _adjusted(logits: torch.Tensor, rows: Sequence[Row], which: Sequence[int]) -> torch.Tensor:
    """Copy the logits, with bias, minimum length and penalties in some of the rows."""
    logits = logits.clone()
    _bias(logits, [(i, *pair) for i in which for pair in rows[i].sampling.logit_bias.items()])
    for i in which:
        if allowed := rows[i].sampling.allowed_token_ids:
            _bar_others(logits, i, allowed)
    barred = [(i, rows[i].ends) for i in which if rows[i].position < rows[i].sampling.min_tokens]
    _bar(logits, [*barred, *((i, words) for i in which if (words := completions(rows[i])))])
    repeated, penalised = list[TokenAmounts](), list[TokenAmounts]()
    for i in which:
        row, s = rows[i], rows[i].sampling
        whole, answer = row.counts or (TokenCounts(), TokenCounts())
        if s.repetition_penalty != 1.0:
            tokens, _ = whole.count(row.ids)
            repeated.append((i, tokens, np.full(len(tokens), s.repetition_penalty)))
        if row.position and (s.presence_penalty or s.frequency_penalty):
            tokens, counts = answer.count(row.ids[row.start :])
            penalised.append((i, tokens, s.presence_penalty + s.frequency_penalty * counts))
    if repeated:
        at, factors = _gather(repeated, logits.device)
        old = logits[at]
        logits[at] = torch.where(old > 0, old / factors, old * factors)
    if penalised:
        at, amounts = _gather(penalised, logits.device)
        logits[at] -= amounts
    return logits


def _bias(logits: torch.Tensor, wanted: Sequence[tuple[int, int, float]]) -> None:
    """Add amounts to logits, in place: `(row, token, amount)` each."""
    if wanted:
        rows, tokens, amounts = zip(*wanted, strict=True)
        device = logits.device
        logits[to_device(rows, device), to_device(tokens, device)] += to_device(amounts, device, torch.float32)


def completions(row: Row) -> tuple[int, ...]:
    """Return the tokens that would complete one of the row's `bad_words` behind what is written of the answer."""
    ids, words = row.ids, row.sampling.bad_words
    longest = max(map(len, words), default=1) - 1
    tail = tuple(ids[max(row.start, len(ids) - longest) :]) if longest else ()  # not all of a long answer
    return tuple(run[-1] for run in words if len(run) <= len(tail) + 1 and tail[len(tail) + 1 - len(run) :] == run[:-1])


def _bar_others(logits: torch.Tensor, row: int, allowed: Sequence[int]) -> None:
    """Bar all tokens of a row but some, in place."""
    index = to_device(allowed, logits.device)
    kept = logits[row, index]
    logits[row] = -torch.inf
    logits[row, index] = kept


def _bar(logits: torch.Tensor, barred: Sequence[tuple[int, tuple[int, ...]]]) -> None:
    """Bar tokens in place: `(row, tokens)` each."""
    places = [(row, token, k) for k, (row, tokens) in enumerate(barred) for token in tokens]
    if not places:
        return
    rows, tokens, k = to_device(places, logits.device).T
    held = logits[rows, tokens]
    logits[rows, tokens] = -torch.inf
    stuck = logits[to_device([row for row, _ in barred], logits.device)].amax(-1) == -torch.inf
    logits[rows, tokens] = torch.where(stuck[k], held, -torch.inf)  # a grammar may allow nothing else


def _gather(
    each: Sequence[TokenAmounts], device: torch.device
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Concatenate to an index of all tokens among the logits, and their amounts (float32)."""
    rows = np.concatenate([np.full(len(tokens), row) for row, tokens, _ in each])
    where = to_device(np.stack([rows, np.concatenate([tokens for _, tokens, _ in each])]), device)
    return (where[0], where[1]), to_device(np.concatenate([own for _, _, own in each]), device, torch.float32)


def _sample(
    logits: torch.Tensor, rows: Sequence[Row], geometry: Geometry | None, entropy: torch.Tensor | None
) -> Drawn:
    samplings = [row.sampling for row in rows]
    base = to_device([max(s.temperature, 1e-5) for s in samplings], logits.device)
    temperatures = adapted_temperatures(base, [s.transforms for s in samplings], entropy)
    seeds = np.array([s.seed & 0xFFFF_FFFF_FFFF_FFFF for s in samplings], dtype=np.uint64)
    positions = np.array([row.position for row in rows], dtype=np.uint64)
    points = to_device(uniform(seeds, positions), logits.device)
    if all(row.untruncated for row in rows):
        return Drawn(sample(logits, temperatures, points))
    tempered = logits / temperatures[:, None]
    crop = _request_truncations(
        truncate(tempered, [s.transforms for s in samplings], geometry, temperatures), samplings
    )
    return Drawn(sample(crop.logits, torch.ones_like(base), points), crop.kept, crop.entropy)


def _request_truncations(crop: Crop, samplings: Sequence[Sampling]) -> Crop:
    """Apply the requests' own `min_p`, then `top_k`, then `top_p`, each to what the one before left."""
    steps = (
        (truncation.min_p, [s.min_p for s in samplings], [s.min_p > 0 for s in samplings]),
        (truncation.top_k, [s.top_k for s in samplings], [s.top_k > 0 for s in samplings]),
        (truncation.top_p, [s.top_p for s in samplings], [s.top_p < 1 for s in samplings]),
    )
    for function, numbers, asked in steps:
        chosen = [i for i, wanted in enumerate(asked) if wanted]
        if not chosen:
            continue
        parameter = to_device([numbers[i] for i in chosen], crop.logits.device)
        if len(chosen) == len(samplings):
            crop = function(crop.logits, parameter)
            continue
        index = to_device(chosen, crop.logits.device)
        for whole, own in zip(crop, function(crop.logits[index], parameter), strict=True):
            whole[index] = own
    return crop


def uniform(seeds: Array, positions: Array) -> Array:
    """Compute a number in [0, 1) for each (seed, position), both uint64: two rounds of SplitMix64, so that no state has
    to travel with a sequence from engine to engine."""
    with np.errstate(over="ignore"):
        bits: Array = _mix(_mix(seeds) + positions) >> np.uint64(11)
        return bits * 2.0**-53


def _mix(x: Array) -> Array:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
