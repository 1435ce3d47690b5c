"""Write to a collection on disk: add segments, merge small ones, and rebuild the index when it has degraded."""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from waver.retrieval import database
from waver.retrieval.base import EmbeddedDocument, Ids, Vectors
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.faiss_reader import FaissReader
from waver.retrieval.index import Kind, build, kind_for
from waver.retrieval.segments import Segment
from waver.retrieval.storage import storing

MERGED = 16_384
"""Vectors up to which small flat segments are merged while documents are added; `compact` does the rest."""
LOOSE = 0.2
"""The index is rebuilt when more than this share of its vectors lies outside of it, or is dead."""


@dataclass(frozen=True)
class NewSegment:
    """A segment that is on disk, but not in the manifest yet."""

    file: str
    kind: Kind
    ids: Ids
    bytes: int
    sha256: str


class FaissWriter:
    """The single writer of a collection, while it holds the lock. See `waver.retrieval.base.Writer`."""

    def __init__(self, store: FaissReader, token: CancelToken | None = None) -> None:
        self._store, self._token = store, token
        with store.database.reading() as db:
            named = {row[0] for row in db.execute("SELECT file FROM segments")}
        with storing(store.spec.name):
            files = list(store.folder.iterdir())
        for file in files:
            # What a writer left that died, or merged away while somebody still had it open.
            if file.suffix == ".faiss" and file.name not in named:
                _remove(store, file.name)

    def add(self, documents: Sequence[EmbeddedDocument]) -> None:
        with self._store.reading() as (_, snapshot):
            flats = [segment for segment in snapshot.segments if segment.index.kind == "flat"]
        total = sum(len(each.chunks) for each in documents)
        absorbed: list[Segment] = []
        # As in a binary counter: a vector is copied again only when the segment it is in at least grows by half.
        for segment in sorted(flats, key=lambda each: len(each.ids)):
            if len(segment.ids) > 2 * total or total + len(segment.ids) > MERGED:
                break
            total += len(segment.ids)
            absorbed.append(segment)
        self._insert(documents, staged=False, absorbed=absorbed)

    def stage(self, documents: Sequence[EmbeddedDocument]) -> None:
        self._insert(documents, staged=True, absorbed=[])

    def _insert(self, documents: Sequence[EmbeddedDocument], staged: bool, absorbed: Sequence[Segment]) -> None:
        documents = list({each.document.id: each for each in documents}.values())
        with self._store.database.reading() as db:
            begin = database.next_chunk(db)
        vectors = [block for segment in absorbed for block in segment.blocks()] + [each.vectors for each in documents]
        old = [segment.chunks for segment in absorbed]
        ids = np.concatenate([*old, begin + np.arange(sum(map(len, vectors)) - sum(map(len, old)), dtype=np.int64)])
        written = self._write("flat", ids, lambda: iter(vectors)) if len(ids) else None
        with self._store.database.changing(self._token) as db:
            database.insert(db, documents, staged)
            _replace(db, absorbed, written, staged)
        for segment in absorbed:
            _remove(self._store, segment.file)

    def publish(self, keep: Iterable[str]) -> None:
        wanted = set(keep)
        with self._store.database.changing(self._token) as db:
            for (document,) in db.execute("SELECT id FROM documents WHERE staged").fetchall():
                if document in wanted:
                    database.forget(db, document, staged=False)
                else:
                    database.forget(db, document, staged=True)
            db.execute("UPDATE documents SET staged = 0 WHERE staged")
            db.execute("UPDATE segments SET staged = 0 WHERE staged")

    def remove(self, document: str) -> bool:
        with self._store.database.changing(self._token) as db:
            return database.forget(db, document, staged=False)

    def staged(self, document: str) -> tuple[str, int] | None:
        return self._store.known(document, staged=True)

    def summarise(self, summaries: Mapping[str, str], kind: str) -> None:
        with self._store.database.changing(self._token) as db:
            db.executemany(
                "INSERT OR REPLACE INTO summaries SELECT key, ?, ? FROM documents WHERE id = ? AND NOT staged",
                [(kind, text, document) for document, text in summaries.items()],
            )

    def compact(self) -> None:
        """Rebuild all segments as one index of the kind that suits its size, if too many vectors lie outside of it or
        are deleted."""
        with self._store.reading() as (_, snapshot):
            segments = snapshot.segments
        count = sum(segment.count for segment in segments)
        kind = kind_for(count, self._store.kind)
        if not segments or not _is_degraded(segments, count, kind):
            return
        written = None
        if count:
            ids = np.concatenate([segment.chunks for segment in segments])
            written = self._write(kind, ids, lambda: (block for segment in segments for block in segment.blocks()))
        with self._store.database.changing(self._token) as db:
            _replace(db, segments, written, staged=False)
        for segment in segments:
            _remove(self._store, segment.file)

    def _write(self, kind: Kind, ids: Ids, blocks: Callable[[], Iterator[Vectors]]) -> NewSegment:
        """Write a segment and sync it to disk; delete the file on failure."""
        file = self._store.folder / f"{secrets.token_hex(8)}.faiss"
        try:
            with storing(self._store.spec.name):
                build(kind, len(ids), self._store.spec.dimension, lambda: self._cancellable(blocks()), file)
                return NewSegment(file.name, kind, ids, *_sync(file))
        except BaseException:
            _remove(self._store, file.name)
            raise

    def _cancellable(self, blocks: Iterator[Vectors]) -> Iterator[Vectors]:
        """Yield the blocks, checking for cancellation before each.

        Raises:
            Cancelled: somebody did.
        """
        for block in blocks:
            if self._token is not None:
                self._token.check()
            yield block


def _sync(file: Path) -> tuple[int, str]:
    """Sync a file's folder entry to disk, and return the file's size and SHA-256."""
    if os.name == "posix":
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return file.stat().st_size, digest


def _is_degraded(segments: Sequence[Segment], count: int, kind: Kind) -> bool:
    largest = max(segments, key=lambda segment: len(segment.ids))
    total = sum(len(segment.ids) for segment in segments)
    loose, dead = total - len(largest.ids), total - count
    return largest.index.kind != kind or loose > LOOSE * total or dead > LOOSE * total


def _replace(db: sqlite3.Connection, old: Sequence[Segment], new: NewSegment | None, staged: bool) -> None:
    kept = np.zeros(0, np.int64) if new is None else new.ids
    for segment in old:
        db.execute("DELETE FROM segments WHERE file = ?", (segment.file,))
        gone = segment.ids[~np.isin(segment.ids, kept)].tolist()
        db.executemany("DELETE FROM dead WHERE chunk = ?", [(chunk,) for chunk in gone])
    if new is not None:
        db.execute(
            "INSERT INTO segments (file, kind, rows, bytes, sha256, ids, staged) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (new.file, new.kind, len(new.ids), new.bytes, new.sha256, new.ids.astype("<i8").tobytes(), int(staged)),
        )


def _remove(store: FaissReader, name: str) -> None:
    # Where a mapped file cannot be deleted, the next writer does it.
    with suppress(OSError):
        (store.folder / name).unlink()
