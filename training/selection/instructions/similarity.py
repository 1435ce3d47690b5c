"""Compare queries with the candidates of a pool, a block of candidates at a time.

A representation gives each text one unit vector per checkpoint, `[texts, checkpoints, dimensions]`; the similarity of
two texts is the weighted sum of their cosines. Features may be a memory map: no more than a block of them is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
BLOCK = 2048
"""Candidates in memory at a time."""


@dataclass(frozen=True)
class Similarity:
    """Similarities of queries and candidates, larger for nearer.

    Args:
        queries: `[M, E, d]`. pool: `[N, E, d]`. weights: of the checkpoints, `[E]`, with the sum 1.
    """

    queries: Floats
    pool: Floats
    weights: Sequence[float] = (1.0,)

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and candidates."""
        return len(self.queries), len(self.pool)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yield the first candidate of each block, and the block's similarities `[M, block]` in float64."""
        for start in range(0, len(self.pool), BLOCK):
            yield start, self._compare(self.queries, self.pool[start : start + BLOCK])

    def between(self, candidates: NDArray[np.integer], others: NDArray[np.integer]) -> Floats:
        """Compare candidates with each other, `[candidates, others]`."""
        return self._compare(self.pool[candidates], self.pool[others])

    def _compare(self, first: Floats, second: Floats) -> Floats:
        found = np.zeros((len(first), len(second)))
        for place, weight in enumerate(self.weights):
            found += weight * (np.asarray(first[:, place], np.float64) @ np.asarray(second[:, place], np.float64).T)
        return found

    def nearest(self, count: int) -> tuple[NDArray[np.int64], Floats]:
        """Return for each query the `count` nearest candidates and their similarities, `[M, count]`, nearest first; of
        equal ones the first in the pool."""
        queries = len(self.queries)
        places, values = np.zeros((queries, 0), np.int64), np.zeros((queries, 0))
        for start, block in self.blocks():
            own = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
            places, values = np.hstack([places, own]), np.hstack([values, block])
            order = np.argsort(-values, axis=1, kind="stable")[:, :count]
            places, values = np.take_along_axis(places, order, 1), np.take_along_axis(values, order, 1)
        return places, values


class Matrix(Similarity):
    """Similarities that are known already, `[M, N]`, with those between candidates where a selector needs them."""

    def __init__(self, values: Floats, between: Floats | None = None) -> None:
        super().__init__(values[:, None], np.zeros((values.shape[1], 1, 1)))
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_between", between)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        values: Floats = self.__dict__["_values"]
        for start in range(0, values.shape[1], BLOCK):
            yield start, values[:, start : start + BLOCK].astype(np.float64)

    def between(self, candidates: NDArray[np.integer], others: NDArray[np.integer]) -> Floats:
        known: Floats | None = self.__dict__["_between"]
        if known is None:
            raise ValueError("these similarities say nothing of candidates between each other")
        own: Floats = known[np.ix_(candidates, others)]
        return own
