"""Numba kernels for rows of logits in a CPU's memory: measure a row, or draw from it, on one core and in one pass.

They work on blocks that fit the core's nearest cache: first the peak of a block, then its sums; the sums of the blocks
before are rescaled where it has a higher peak. The loops are written so that the compiler vectorises them. Compiled
code is cached beside this file or in the user's cache under this file's name alone: nothing here may call what is
compiled in another file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy import float32, int32, uint64

from waver.devices import Array

BLOCK = 2048
"""Logits in a block: 8 KiB."""
LOWEST_LOGIT = float32(-87)
"""Lowest logit, relative to the peak, that has a weight: its exponential is near the smallest float32."""
LOG2_E = float32(1 / math.log(2))
C1, C2, C3 = float32(0.6931471805599457), float32(0.2402234903802031), float32(0.05550381013796709)
C4, C5 = float32(0.009666368515383541), float32(0.0013381302537145803)
"""(2^x - 1) / x for |x| <= 1/2, interpolated at Chebyshev's points."""
ONE, BIAS, MANTISSA = float32(1), int32(127), int32(23)
INT32_MIN, INT32_MAX = int32(-(2**31)), int32(2**31 - 1)
SHIFT = float32(1.5 * 2**23)
"""Added to a number, this leaves its integer part in the lowest bits."""


def _compiled(*signature: str, fastmath: set[str] | bool = False) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(*signature, fastmath=fastmath, nogil=True, cache=True)(function)
        except Exception:  # the cache cannot be written, or belongs to another user: each is an error of its own
            return njit(*signature, fastmath=fastmath, nogil=True)(function)

    return decorate


@_compiled()
def _block_peak(bits: Array, begin: uint64, end: uint64) -> Any:
    """Find the largest float32 of a block by its bits, as integers in the order of the numbers: the compiler vectorises
    their maximum. A NaN counts as larger than all, or as smaller."""
    largest = INT32_MIN
    for i in range(begin, end):
        largest = max(largest, int32(bits[i] ^ ((bits[i] >> int32(31)) & INT32_MAX)))
    return int32(largest ^ ((largest >> int32(31)) & INT32_MAX)).view(float32)


@_compiled(fastmath={"contract", "nsz"})
def _exp(known: float32) -> Any:
    """Compute exp of a number from `LOWEST_LOGIT` to 0, within 3e-7. NaN stays NaN."""
    exponent = known * LOG2_E
    shifted = exponent + SHIFT
    x = exponent - (shifted - SHIFT)
    power = ((((C5 * x + C4) * x + C3) * x + C2) * x + C1) * x + ONE
    return power * int32((float32(shifted).view(int32) + BIAS) << MANTISSA).view(float32)


@_compiled(fastmath={"contract", "nsz", "reassoc"})
def _block_sums(values: Array, begin: uint64, end: uint64, peak: float32) -> Any:
    """Sum exp(c) and exp(c) c of a block, with c = value - peak."""
    partition = weighted = float32(0)
    for i in range(begin, end):
        centred = values[i] - peak
        centred = LOWEST_LOGIT if centred < LOWEST_LOGIT else centred  # 0 times -inf would be NaN
        weight = _exp(centred)
        partition += weight
        weighted += weight * centred
    return partition, weighted


@_compiled("void(float32[:, ::1], float32[:, ::1])")
def measure(logits: Array, out: Array) -> None:
    """Compute `waver.entropy.fused.measure` of `[rows, vocab]` logits into `[3, rows]`; float32, each contiguous."""
    for row in range(logits.shape[0]):
        values, bits = logits[row], logits[row].view(int32)
        peak, partition, weighted = -np.inf, 0.0, 0.0
        for first in range(0, len(values), BLOCK):
            begin, end = uint64(first), uint64(min(first + BLOCK, len(values)))
            higher = _block_peak(bits, begin, end)
            if not higher <= peak:  # higher, or NaN
                if partition != 0:
                    fall = peak - higher
                    scale = math.exp(fall)
                    weighted = scale * (weighted + fall * partition)
                    partition *= scale
                peak = higher
            if peak != -np.inf:
                more = _block_sums(values, begin, end, float32(peak))
                partition += more[0]
                weighted += more[1]
        if partition == 0:
            out[0, row], out[1, row] = 0, -np.inf
        else:
            out[1, row] = math.log(partition)
            out[0, row] = math.log(partition) - weighted / partition
        out[2, row] = peak


@_compiled(fastmath={"contract", "nsz"})
def _weight(centred: float32) -> Any:
    """Compute exp of a number up to 0; 0 below `LOWEST_LOGIT`, where `_exp` is not valid."""
    return float32(0) if centred < LOWEST_LOGIT else _exp(centred)


@_compiled(fastmath={"contract", "nsz", "reassoc"})
def _block_mass(values: Array, begin: uint64, end: uint64, peak: float32, coldness: float32) -> Any:
    """Sum exp((value - peak) / temperature) of a block."""
    mass = float32(0)
    for i in range(begin, end):
        mass += _weight((values[i] - peak) * coldness)
    return mass


@_compiled("void(float32[:, ::1], float32[::1], float64[::1], int64[::1])")
def sample(logits: Array, temperatures: Array, points: Array, tokens: Array) -> None:
    """Draw from each row by inverse transform: write the token at the row's point of the running sum of exp(logit /
    temperature) into `tokens`, found by block and then inside the block. Arrays are contiguous; points lie in [0, 1). A
    row without any token has the first."""
    rows, vocabulary = logits.shape
    blocks = (vocabulary + BLOCK - 1) // BLOCK
    masses, peaks = np.zeros(blocks), np.empty(blocks, float32)
    for row in range(rows):
        values, bits = logits[row], logits[row].view(int32)
        coldness, peak = float32(1 / temperatures[row]), float32(-np.inf)
        for block in range(blocks):
            begin, end = uint64(block * BLOCK), uint64(min((block + 1) * BLOCK, vocabulary))
            peak = max(peak, _block_peak(bits, begin, end))
            peaks[block] = peak
            masses[block] = _block_mass(values, begin, end, peak, coldness) if peak > -np.inf else 0
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
        # Rounding must not lead out of the block, to a token that may have no weight.
        tokens[row], inside = here * BLOCK, 0.0
        for token in range(here * BLOCK, min((here + 1) * BLOCK, vocabulary)):
            weight = _weight((values[token] - peak) * coldness)
            if weight > 0:
                tokens[row] = token
                inside += weight
                if inside > rest:
                    break
