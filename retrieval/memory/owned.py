"""Keep rows of owners, each with a vector, in one file: what the stores of memories and of facts have in common.

A row's table has columns `id`, `embedder` and `vector`, and `owners` counts the changes of each owner.
"""

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np

from waver.retrieval.base import Vectors
from waver.retrieval.cancellation import in_thread
from waver.retrieval.embedder import Embedder
from waver.retrieval.memory.database import Layout, OwnedFile
from waver.retrieval.memory.unit import exact

OWNERS = """
CREATE TABLE owners (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    generation INTEGER NOT NULL DEFAULT 0);"""
"""The table of owners. Every file of an `OwnedStore` has it."""
OPEN = 32
"""Owners whose rows are held in memory for searches."""
Kept = TypeVar("Kept")
Result = TypeVar("Result")
Rows = Sequence[Sequence[Any]]


class OwnedStore(Generic[Kept]):
    """The rows of all owners in one file. `Kept` is what searches hold of an owner's rows."""

    def __init__(
        self,
        path: Path,
        layout: Layout,
        lock_seconds: float,
        embedder: Callable[[], Embedder],
        threads: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up; nothing is read or written yet.

        Args:
            embedder: returns what makes the vectors. clock: seconds since 1970.
        """
        self.clock = exact(clock)
        self.file = OwnedFile(path, layout, lock_seconds)
        self.embedder = embedder
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=layout.name)
        self._held: OrderedDict[str, tuple[tuple[int, int], Kept]] = OrderedDict()
        self._lock = Lock()

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run blocking work in a thread."""
        return await in_thread(self._threads, work, *arguments)

    async def ready(self) -> None:
        """Load the embedder, if it is not there yet.

        Raises:
            Unavailable: it cannot be loaded.
        """
        embedder = self.embedder()
        if not embedder.loaded:
            await self.run(lambda: embedder.model)

    def hold(self, name: str, none: Kept, select: str, make: Callable[[Rows], Kept]) -> Kept:
        """Return what searches need of an owner as it is now, made anew where anything has changed. Blocks.

        Args:
            none: for an owner who has nothing. select: SQL for the owner's rows, with a `?` for the owner's id.
        """
        if not self.file.there:
            return none
        with self.file.reading() as db:
            row = db.execute("SELECT id, generation FROM owners WHERE name = ?", (name,)).fetchone()
            if row is None:
                return none
            with self._lock:
                held = self._held.get(name)
                if held is not None and held[0] == row:
                    self._held.move_to_end(name)
                    return held[1]
            read = db.execute(select, row[:1]).fetchall()
        made = make(read)
        with self._lock:
            self._held[name] = row, made
            while len(self._held) > OPEN:
                self._held.popitem(last=False)
        return made

    def forget_held(self, name: str) -> None:
        """Drop what searches hold of an owner."""
        with self._lock:
            self._held.pop(name, None)

    def vectors(self, table: str, read: Rows, embed: Callable[[Sequence[int]], Vectors], parts: int = 1) -> Vectors:
        """Return the vectors of rows that begin with their id and end with `embedder, vector`; those of other weights
        are made anew, and kept. Blocks.

        Args:
            embed: makes the vectors of the rows at some places, `[places, parts * dimension]`.
        """
        embedder = self.embedder()
        stale = [i for i, row in enumerate(read) if row[-2] != embedder.fingerprint]
        vectors = np.zeros((len(read), parts * embedder.dimension), np.float32)
        for i, row in enumerate(read):
            if row[-2] == embedder.fingerprint:
                vectors[i] = np.frombuffer(row[-1], np.float32)
        if stale:
            vectors[stale] = embed(stale)
            with self.file.changing() as db:
                rows = [(embedder.fingerprint, vectors[i].tobytes(), read[i][0]) for i in stale]
                db.executemany(f"UPDATE {table} SET embedder = ?, vector = ? WHERE id = ?", rows)
        return vectors

    def read(self, name: str, work: Callable[[sqlite3.Connection, int], Result], otherwise: Result) -> Result:
        """Read rows of an owner; `otherwise` is for one who has nothing. Blocks."""
        if not self.file.there:
            return otherwise
        with self.file.reading() as db:
            owner = owner_of(db, name)
            return otherwise if owner is None else work(db, owner)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self.file.close()


def owner_of(db: sqlite3.Connection, name: str) -> int | None:
    """Return the id of an owner; None where there is none."""
    row = db.execute("SELECT id FROM owners WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def made_owner(db: sqlite3.Connection, name: str) -> int:
    """Return the id of an owner, a new one where there is none."""
    known = owner_of(db, name)
    return int(db.execute("INSERT INTO owners (name) VALUES (?)", (name,)).lastrowid or 0) if known is None else known


def changed(db: sqlite3.Connection, owner: int) -> None:
    """Count a change of an owner's rows."""
    db.execute("UPDATE owners SET generation = generation + 1 WHERE id = ?", (owner,))
