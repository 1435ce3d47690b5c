"""Read a collection on disk: consistent snapshots of the database and of the FAISS files (segments) that it lists."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from waver.retrieval import database
from waver.retrieval.base import Damaged
from waver.retrieval.database import Database
from waver.retrieval.index import Kind
from waver.retrieval.segments import Snapshot, open_segment

DATABASE = "collection.sqlite3"


class FaissReader:
    """Reader of a collection's folder. It never waits for a writer."""

    def __init__(self, folder: Path, index: Kind | None = None) -> None:
        """Open a collection's folder.

        Args:
            index: the kind of every index, whatever its size; by size if None.

        Raises:
            NoCollection: there is none in the folder.
            Damaged: what is there is not what was written.
        """
        self.folder, self.kind = folder, index
        self.database = Database(folder / DATABASE)
        self._opening = threading.Lock()
        self._snapshot: Snapshot | None = None
        with self.database.reading() as db:
            self.spec = database.spec(db)
        if self.spec.name != folder.name:
            raise Damaged(f"The folder '{folder.name}' holds the collection '{self.spec.name}'.")

    @contextmanager
    def reading(self) -> Iterator[tuple[sqlite3.Connection, Snapshot]]:
        """Yield a read transaction on the database and the segments that it lists."""
        seen = -1
        while True:
            with self.database.reading() as db:
                try:
                    snapshot = self.snapshot(db)
                except FileNotFoundError as error:
                    # A writer has merged the segment away since this state; in the newest one nothing is missing.
                    now = database.generation(db)
                    if now == seen:
                        message = (
                            f"The collection '{self.spec.name}' is damaged: {Path(error.filename).name} is missing."
                        )
                        raise Damaged(message) from error
                    seen = now
                    continue
                yield db, snapshot
                return

    def snapshot(self, db: sqlite3.Connection) -> Snapshot:
        """Return the segments of the state that `db` reads; segments that are open already are reused."""
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

    def check_files(self) -> None:
        """Check that the files of all segments exist, also of those that are open and so could still be read.

        Raises:
            Damaged: one of them is gone, or has another size.
        """
        seen = -1
        while True:
            with self.database.reading() as db:
                now = database.generation(db)
                sizes = dict(db.execute("SELECT file, bytes FROM segments").fetchall())
            wrong = [file for file, size in sizes.items() if _size(self.folder / file) != size]
            if not wrong:
                return
            if now == seen:  # no writer has merged it away meanwhile
                message = f"The collection '{self.spec.name}' is damaged: {wrong[0]} is missing or cut."
                raise Damaged(message)
            seen = now

    def known(self, document: str, staged: bool) -> tuple[str, int] | None:
        """Return the digest and the number of chunks of a searchable document, or of a staged one."""
        with self.database.reading() as db:
            row = db.execute(
                "SELECT digest, chunks FROM documents WHERE id = ? AND staged = ?", (document, int(staged))
            ).fetchone()
        return None if row is None else (row[0], row[1])

    def close(self) -> None:
        """Close files and connections."""
        self.database.close()
        self._snapshot = None


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
