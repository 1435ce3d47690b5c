"""The store on one machine: vectors in immutable FAISS files (segments), everything else in SQLite.

A segment is written and synced before the transaction that names it; until that commits, nobody knows it, and the next
writer deletes it. Readers see one state of the database and map the segments that it names, so they never wait.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from waver.retrieval import database
from waver.retrieval.base import Busy, Damaged, Filter, Info, NoCollection, Passage, Spec, Vectors
from waver.retrieval.database import Database
from waver.retrieval.faiss_writer import FaissWriter
from waver.retrieval.index import Kind
from waver.retrieval.segments import Snapshot, open_segment

DATABASE, LOCK = "collection.sqlite3", "lock"


class FaissStore:
    """A collection's folder."""

    def __init__(self, folder: Path, index: Kind | None = None, lock_seconds: float = 30.0) -> None:
        """Args:
            index: the kind of every index, whatever its size; by size if None.
            lock_seconds: how long to wait for another writer.

        Raises:
            NoCollection: there is none in the folder.
            Damaged: what is there is not what was written.
        """
        self.folder, self.kind, self._lock_seconds = folder, index, lock_seconds
        self.database = Database(folder / DATABASE)
        self._opening = threading.Lock()
        self._snapshot: Snapshot | None = None
        with self.database.reading() as db:
            self.spec = database.spec(db)
        if self.spec.name != folder.name:
            raise Damaged(f"The folder '{folder.name}' holds the collection '{self.spec.name}'.")

    @staticmethod
    def create(folder: Path, spec: Spec) -> None:
        """Make an empty collection in a folder that exists."""
        Database.create(folder / DATABASE, spec)

    @property
    def current(self) -> bool:
        return self.database.current

    @contextmanager
    def writing(self) -> Iterator[FaissWriter]:
        with self.lock(self.folder, self._lock_seconds):
            yield FaissWriter(self)

    @staticmethod
    @contextmanager
    def lock(folder: Path, seconds: float) -> Iterator[None]:
        """Hold the folder's lock, which ends with the process at the latest.

        Raises:
            NoCollection: there is no such folder.
            Busy: somebody else held it for so many seconds.
        """
        lock = FileLock(folder / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise Busy(f"Somebody else is writing to the collection '{folder.name}'; try again later.") from None
        except OSError:
            raise NoCollection(f"There is no collection '{folder.name}'.") from None
        try:
            yield
        finally:
            lock.release()

    def find(
        self, vector: Vectors | None, words: str | None, count: int, where: Filter
    ) -> tuple[list[Passage], list[Passage]]:
        with self.reading() as (db, snapshot):
            dense = {} if vector is None else snapshot.nearest(db, vector, count, where)
            lexical = {} if words is None else dict(database.matching(db, words, count, where))
            rankings = []
            for scores in (dense, lexical):
                found = database.passages(db, scores)
                rankings.append([found[chunk] for chunk in scores if chunk in found])
        return rankings[0], rankings[1]

    @contextmanager
    def reading(self) -> Iterator[tuple[sqlite3.Connection, Snapshot]]:
        """A state of the database and the segments that it names."""
        seen = -1
        while True:
            with self.database.reading() as db:
                try:
                    snapshot = self.snapshot(db)
                except FileNotFoundError as error:
                    # A writer has merged the segment away since this state; in the newest one nothing is missing.
                    now = database.generation(db)
                    if now == seen:
                        message = f"The collection '{self.spec.name}' is damaged: {error.filename} is missing."
                        raise Damaged(message) from error
                    seen = now
                    continue
                yield db, snapshot
                return

    def snapshot(self, db: sqlite3.Connection) -> Snapshot:
        """The segments of the state that `db` reads; those opened before are used again."""
        generation = database.generation(db)
        with self._opening:
            known = self._snapshot
            if known is not None and known.generation == generation:
                return known
            opened = {} if known is None else {segment.file: segment for segment in known.segments}
            rows = db.execute("SELECT file, kind, rows, bytes, sha256, ids FROM segments WHERE NOT staged")
            dead = np.fromiter((row[0] for row in db.execute("SELECT chunk FROM dead")), np.int64)
            segments = []
            for row in rows.fetchall():
                segment = opened.get(row[0]) or open_segment(self.folder, row, self.spec.dimension)
                gone = np.isin(segment.ids, dead)
                segments.append(replace(segment, live=~gone if gone.any() else None))
            found = Snapshot(generation, tuple(segments), OrderedDict())
            if known is None or known.generation < generation:
                self._snapshot = found
            return found

    def summaries(self, documents: Sequence[str], kind: str) -> dict[str, str]:
        with self.database.reading() as db:
            rows = db.execute(
                "SELECT d.id, s.text FROM documents d JOIN summaries s ON s.document = d.key WHERE NOT d.staged AND "
                f"s.kind = ? AND d.id IN ({','.join('?' * len(documents))})",
                [kind, *documents],
            )
            return {row[0]: row[1] for row in rows}

    def openings(self, documents: Sequence[str], chunks: int) -> list[tuple[str, str]]:
        with self.database.reading() as db:
            rows = db.execute(
                "SELECT d.id, c.text FROM documents d JOIN chunks c ON c.document = d.key WHERE NOT d.staged AND "
                f"c.number < ? AND d.id IN ({','.join('?' * len(documents))}) ORDER BY d.id, c.number",
                [chunks, *documents],
            )
            return [(document, text) for document, text in rows]

    def info(self) -> Info:
        with self.database.reading() as db:
            documents, chunks = db.execute(
                "SELECT COUNT(*), COALESCE(SUM(chunks), 0) FROM documents WHERE NOT staged"
            ).fetchone()
            kinds = db.execute("SELECT kind FROM segments WHERE NOT staged ORDER BY rows DESC LIMIT 1").fetchone()
        return Info(
            self.spec.name,
            documents,
            chunks,
            self.spec.dimension,
            self.spec.embedder,
            self.spec.chunk_tokens,
            self.spec.chunk_overlap,
            kinds[0] if kinds else "flat",
            _bytes(self.folder),
        )

    def close(self) -> None:
        self.database.close()
        self._snapshot = None


def _bytes(folder: Path) -> int:
    """Size of a folder's files; one that is deleted meanwhile counts nothing."""
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size
