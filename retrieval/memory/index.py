"""Search the memories of one owner: by meaning, by words, and by their symbolic fields, from one state of the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt

from waver.retrieval.base import Vectors
from waver.retrieval.memory.lexical import BM25
from waver.retrieval.memory.unit import Memory, Unit
from waver.retrieval.words import search_terms, words

Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Constraints:
    """Symbolic conditions of a question, all of which have to hold. Empty ones hold for nothing."""

    names: tuple[str, ...] = ()
    """Persons or things that a memory mentions."""
    location: str | None = None
    after: datetime | None = None
    before: datetime | None = None

    def __bool__(self) -> bool:
        return bool(self.names or self.location or self.after or self.before)

    def hold(self, unit: Unit) -> bool:
        """Return whether a unit satisfies all of them."""
        if not self:
            return False
        named = {word for name in (*unit.persons, *unit.entities, unit.content) for word in words(name)}
        if any(not named.issuperset(words(name)) for name in self.names):
            return False
        if self.location and not set(words(unit.location or "")).issuperset(words(self.location)):
            return False
        begin, end = unit.time, unit.until or unit.time
        if self.after and (end is None or end < self.after):
            return False
        return not (self.before and (begin is None or begin >= self.before))


class Index:
    """The memories of an owner with their vectors `[memories, dimension]`, as they were at one generation."""

    def __init__(self, memories: Sequence[Memory], vectors: Vectors) -> None:
        self.memories, self.vectors = tuple(memories), vectors
        self.live: Mask = np.array([each.archived_by is None for each in memories], bool)

    @cached_property
    def _bm25(self) -> BM25:
        return BM25([each.unit.lexical for each in self.memories])

    @cached_property
    def by_id(self) -> dict[int, int]:
        """Return the place of each memory by its id."""
        return {each.id: i for i, each in enumerate(self.memories)}

    def children(self, abstract: int) -> list[int]:
        """Return the places of what an abstract has archived."""
        return [i for i, each in enumerate(self.memories) if each.archived_by == abstract]

    def dense(self, vector: Vectors) -> Scores:
        """Return the cosine of every memory with a unit vector `[dimension]`."""
        return (self.vectors @ vector).astype(np.float64)

    def lexical(self, query: str | Sequence[str]) -> Scores:
        """Return the BM25 score of every memory for a question or for words, divided by the largest one."""
        terms = search_terms(query) if isinstance(query, str) else [w for each in query for w in words(each)]
        scores = self._bm25.scores(terms)
        top = scores.max(initial=0.0)
        return scores / top if top > 0 else scores

    def satisfying(self, constraints: Constraints) -> Mask:
        """Return which memories satisfy symbolic conditions."""
        return np.array([constraints.hold(each.unit) for each in self.memories], bool)
