"""Open segments, immutable FAISS files with the chunk ids of their vectors, and search several of them."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from waver.retrieval import database
from waver.retrieval.base import Damaged, Filter, Ids, Vectors
from waver.retrieval.index import STEP, Index, Kind, Mask

FILTERS = 32
"""Filters whose chunks are remembered, for as long as nothing changes."""


@dataclass(frozen=True)
class Segment:
    """A FAISS file, the chunk of each of its vectors, and a mask of vectors that are not deleted (None: all)."""

    file: str
    index: Index
    ids: Ids
    live: Mask | None = None

    @property
    def count(self) -> int:
        """Return the number of vectors that are not deleted."""
        return len(self.ids) if self.live is None else int(self.live.sum())

    @property
    def chunks(self) -> Ids:
        """Return the chunks that are not deleted, in the order of their vectors."""
        return self.ids if self.live is None else self.ids[self.live]

    def blocks(self) -> Iterator[Vectors]:
        """Yield the vectors that are not deleted, in blocks `[n, dimension]`."""
        for start in range(0, len(self.ids), STEP):
            end = min(start + STEP, len(self.ids))
            vectors = self.index.vectors(start, end)
            yield vectors if self.live is None else vectors[self.live[start:end]]


@dataclass(frozen=True)
class Snapshot:
    """The segments of one state of a collection."""

    generation: int
    segments: tuple[Segment, ...]
    filters: OrderedDict[str, Ids]

    def nearest(self, db: sqlite3.Connection, vector: Vectors, count: int, where: Filter) -> dict[int, float]:
        """Return the scores of the nearest chunks, best first; `db` must read the state of this snapshot."""
        wanted = self._filtered(db, where) if where else None
        scores, chunks = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for segment in self.segments:
            admitted = segment.live
            if wanted is not None:
                within = np.isin(segment.ids, wanted)
                admitted = within if admitted is None else within & admitted
            found, positions = segment.index.search(vector[None], min(count, len(segment.ids)), admitted)
            there = positions[0] >= 0
            scores.append(found[0][there])
            chunks.append(segment.ids[positions[0][there]])
        score, chunk = np.concatenate(scores), np.concatenate(chunks)
        best = np.argsort(-score, kind="stable")[:count]
        return dict(zip(chunk[best].tolist(), score[best].tolist(), strict=True))

    def _filtered(self, db: sqlite3.Connection, where: Filter) -> Ids:
        key = repr(sorted(where.items()))
        known = self.filters.get(key)
        if known is None:
            known = np.fromiter(database.chunks_where(db, where), np.int64)
            self.filters[key] = known
            while len(self.filters) > FILTERS:
                self.filters.popitem(last=False)
        return known


def open_segment(folder: Path, row: Sequence[object], dimension: int) -> Segment:
    """Open the segment of a row of the manifest: `file, kind, rows, bytes, sha256, ids`.

    Raises:
        FileNotFoundError: the file is not there.
        Damaged: it is not the file that was written.
    """
    name, kind, rows, size, sha256, ids = row
    where = f"The collection '{folder.name}' is damaged"
    file = folder / str(name)
    with file.open("rb") as stream:
        same = os.fstat(stream.fileno()).st_size == size
        same = same and hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    if not same:
        raise Damaged(f"{where}: {name} is not the file that was written.")
    if len(cast(bytes, ids)) != 8 * cast(int, rows):
        raise Damaged(f"{where}: the manifest's entry of {name} is cut.")
    chunks = np.frombuffer(cast(bytes, ids), "<i8")
    return Segment(str(name), Index(file, cast(Kind, kind), len(chunks), dimension), chunks)
