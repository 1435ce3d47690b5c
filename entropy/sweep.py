"""Rows of logits in a CPU's memory, each measured or drawn from on one core and in one pass: by Numba.

A block at a time, small enough for the core's nearest cache: its peak first, then its sums, and those of the blocks
before it are rescaled where it has a higher peak. A compiler finds vectors in all of it. What it makes is kept beside
this file or in the user's cache, and knows this file alone: nothing here may call what is compiled in another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy import float32, int32, uint64

from waver.entropy.sending import Array

BLOCK = 2048
"""Logits in a block: 8 KiB."""
LEAST = float32(-87)
"""A logit so far below the peak has no weight: near the smallest number that float32 has."""
BITS = float32(1 / math.log(2))
C1, C2, C3 = float32(0.6931471805599457), float32(0.2402234903802031), float32(0.05550381013796709)
C4, C5 = float32(0.009666368515383541), float32(0.0013381302537145803)
"""(2^x - 1) / x for |x| <= 1/2, interpolated at Chebyshev's points."""
ONE, BIAS, MANTISSA = float32(1), int32(127), int32(23)
LOWEST, HIGHEST = int32(-(2**31)), int32(2**31 - 1)
SHIFT = float32(1.5 * 2**23)
"""Added to a number, this leaves its integer part in the lowest bits."""


def _compiled(*signature: str, fastmath: set[str] | bool = False) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(*signature, fastmath=fastmath, nogil=True, cache=True)(function)
        except Exception:  # nowhere to keep it, or what is kept is not ours: each is an error of its own
            return njit(*signature, fastmath=fastmath, nogil=True)(function)

    return decorate


@_compiled()
def _highest(bits: Array, begin: uint64, end: uint64) -> Any:
    """The largest float32 of a block, from the bits of all: integers in the order of the numbers, of which a compiler
    finds the largest with vectors. A NaN counts as larger than all, or as smaller."""
    largest = LOWEST
    for i in range(begin, end):
        largest = max(largest, int32(bits[i] ^ ((bits[i] >> int32(31)) & HIGHEST)))
    return int32(largest ^ ((largest >> int32(31)) & HIGHEST)).view(float32)


@_compiled(fastmath={"contract", "nsz"})
def _power(known: float32) -> Any:
    """exp of a number from `LEAST` to 0, within 3e-7 of it. NaN stays NaN."""
    exponent = known * BITS
    shifted = exponent + SHIFT
    x = exponent - (shifted - SHIFT)
    power = ((((C5 * x + C4) * x + C3) * x + C2) * x + C1) * x + ONE
    return power * int32((float32(shifted).view(int32) + BIAS) << MANTISSA).view(float32)


@_compiled(fastmath={"contract", "nsz", "reassoc"})
def _sums(values: Array, begin: uint64, end: uint64, peak: float32) -> Any:
    """Σ exp(c) and Σ exp(c) c of a block, with c = value - peak."""
    partition = weighted = float32(0)
    for i in range(begin, end):
        centred = values[i] - peak
        centred = LEAST if centred < LEAST else centred  # 0 times -inf would be no number
        weight = _power(centred)
        partition += weight
        weighted += weight * centred
    return partition, weighted


@_compiled("void(float32[:, ::1], float32[:, ::1])")
def measure(logits: Array, found: Array) -> None:
    """`waver.entropy.fused.measure` of `[rows, vocab]` logits into `[3, rows]`; float32, each contiguous."""
    for row in range(logits.shape[0]):
        values, bits = logits[row], logits[row].view(int32)
        peak, partition, weighted = -np.inf, 0.0, 0.0
        for first in range(0, len(values), BLOCK):
            begin, end = uint64(first), uint64(min(first + BLOCK, len(values)))
            higher = _highest(bits, begin, end)
            if not higher <= peak:  # higher, or not a number
                if partition != 0:
                    fall = peak - higher
                    scale = math.exp(fall)
                    weighted = scale * (weighted + fall * partition)
                    partition *= scale
                peak = higher
            if peak != -np.inf:
                more = _sums(values, begin, end, float32(peak))
                partition += more[0]
                weighted += more[1]
        if partition == 0:
            found[0, row], found[1, row] = 0, -np.inf
        else:
            found[1, row] = math.log(partition)
            found[0, row] = math.log(partition) - weighted / partition
        found[2, row] = peak


@_compiled(fastmath={"contract", "nsz"})
def _weight(centred: float32) -> Any:
    """exp of a number up to 0: 0 below `LEAST`, where `_power` knows nothing."""
    return float32(0) if centred < LEAST else _power(centred)


@_compiled(fastmath={"contract", "nsz", "reassoc"})
def _mass(values: Array, begin: uint64, end: uint64, peak: float32, coldness: float32) -> Any:
    """Σ exp((value - peak) / temperature) of a block."""
    mass = float32(0)
    for i in range(begin, end):
        mass += _weight((values[i] - peak) * coldness)
    return mass


@_compiled("void(float32[:, ::1], float32[::1], float64[::1], int64[::1])")
def pick(logits: Array, temperatures: Array, points: Array, tokens: Array) -> None:
    """The token at each row's point of the running sum of exp(logit / temperature), into `tokens`: first to its block,
    then inside that. Arrays are contiguous; points lie in [0, 1). A row without any token has the first."""
    rows, vocabulary = logits.shape
    blocks = (vocabulary + BLOCK - 1) // BLOCK
    masses, peaks = np.zeros(blocks), np.empty(blocks, float32)
    for row in range(rows):
        values, bits = logits[row], logits[row].view(int32)
        coldness, peak = float32(1 / temperatures[row]), float32(-np.inf)
        for block in range(blocks):
            begin, end = uint64(block * BLOCK), uint64(min((block + 1) * BLOCK, vocabulary))
            peak = max(peak, _highest(bits, begin, end))
            peaks[block] = peak
            masses[block] = _mass(values, begin, end, peak, coldness) if peak > -np.inf else 0
        total = 0.0
        for block in range(blocks):
            if masses[block] > 0:
                masses[block] *= math.exp((peaks[block] - peak) * coldness)
            total += masses[block]
        rest, here = points[row] * total, 0
        for block in range(blocks):
            if masses[block] > 0:
                here = block
                if rest < masses[block]:
                    break
                rest -= masses[block]
        # Rounding must not lead out of the block, to where there may be no weight.
        tokens[row], inside = here * BLOCK, 0.0
        for token in range(here * BLOCK, min((here + 1) * BLOCK, vocabulary)):
            weight = _weight((values[token] - peak) * coldness)
            if weight > 0:
                tokens[row] = token
                inside += weight
                if inside > rest:
                    break
