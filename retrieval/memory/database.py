"""Open a SQLite file in which several processes keep what belongs to owners.

A change is on disk, all of it, when its transaction has committed, and what is deleted is overwritten with zeros
(`secure_delete`). Several processes may use the file at once.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from waver.retrieval.base import Busy, Damaged, NoSpace, StorageError
from waver.retrieval.connections import Connections, marks, reading, writing


@dataclass(frozen=True)
class Layout:
    """The contents of a file: its mark and version in SQLite's header, its tables, and its name in a sentence."""

    mark: int
    version: int
    schema: str
    name: str


FULL = (sqlite3.SQLITE_FULL,)
FORBIDDEN = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
WAITING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
FOREIGN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class OwnedFile:
    """The file, made when something is first written. Every method blocks; any thread may call it."""

    def __init__(self, path: Path, layout: Layout, lock_seconds: float = 30.0) -> None:
        self.path, self._layout, self._wait = path, layout, lock_seconds
        self._connections = Connections(self._open)

    @property
    def there(self) -> bool:
        """Return whether anything was ever written."""
        return self.path.exists()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open a read transaction: one state of the file, whatever is written meanwhile.

        Raises:
            RetrievalError: the file cannot be read.
        """
        with self._connection() as db, reading(db):
            yield db

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Open a write transaction, which commits as a whole or not at all.

        Raises:
            Busy: another process wrote for all of `lock_seconds`.
            RetrievalError: the file cannot be written.
        """
        with self._connection() as db, writing(db):
            yield db

    def purge(self) -> None:
        """Move everything out of the journal, which may hold what was deleted, and cut it to nothing.

        Raises:
            Busy: somebody read for all of `lock_seconds`.
        """
        until = time.monotonic() + self._wait
        while True:
            with self._connection() as db:
                busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                return
            if time.monotonic() > until:
                raise Busy("What was erased is gone, but a reader keeps its journal; erase again to be sure.")
            time.sleep(0.05)

    def close(self) -> None:
        self._connections.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connections.one() as db:
                yield db
        except sqlite3.DatabaseError as error:
            raise failure(error, self._layout.name) from error
        except OSError as error:
            message = f"The {self._layout.name} cannot be read or written: their folder is out of reach."
            raise StorageError(message) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=self._wait)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            for setting in ("trusted_schema = OFF", "synchronous = FULL", "secure_delete = ON"):
                db.execute(f"PRAGMA {setting}")
            if marks(db) == (0, 0):
                _create(db, self._layout)
            if marks(db) != (self._layout.mark, self._layout.version):
                raise Damaged(f"The file of the {self._layout.name} was not written by this release of Waver.")
        except BaseException:
            db.close()
            raise
        return db


def _create(db: sqlite3.Connection, layout: Layout) -> None:
    """Make the tables, unless another process has just done so."""
    with writing(db):
        if marks(db) == (0, 0):
            for statement in layout.schema.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {layout.mark}")
            db.execute(f"PRAGMA user_version = {layout.version}")


def failure(error: sqlite3.DatabaseError, name: str) -> Exception:
    """Convert an error of SQLite to one of retrieval, without the path."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in FULL:
        return NoSpace(f"The {name} cannot be written: the disk is full. Nothing was changed.")
    if code in FORBIDDEN:
        return StorageError(f"The {name} cannot be opened or written: their folder is read-only for the server.")
    if code in WAITING:
        return Busy(f"Somebody else is writing {name}; try again later.")
    if code in FOREIGN:
        return Damaged(f"The file of the {name} is damaged: {error}.")
    return StorageError(f"The {name} cannot be used: {error}.")
