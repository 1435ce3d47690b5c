"""Keep connections to a SQLite file, and open transactions on them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Connections:
    """A pool: each thread that asks has a connection of its own. `connect` opens one."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection. It is closed where anything fails, and kept for the next one otherwise."""
        with self._lock:
            db = self._idle.pop() if self._idle else None
        try:
            if db is None:
                db = self._connect()
            yield db
            with self._lock:
                if not self._closed:
                    self._idle.append(db)
                    db = None
        finally:
            if db is not None:
                db.close()

    def close(self) -> None:
        """Close the connections; those in use are closed once they are no longer."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()


@contextmanager
def reading(db: sqlite3.Connection) -> Iterator[None]:
    """Open a read transaction: it sees one state of the file, whatever is written meanwhile."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """Open a write transaction. It commits as a whole or not at all."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def marks(db: sqlite3.Connection) -> tuple[int, int]:
    """Read what SQLite's header says of a file: whose it is (`application_id`), and its version (`user_version`)."""
    return db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]
