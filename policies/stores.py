"""Named stores: what policies keep between requests, by owner, on disk.

A policy object is frozen and an engine belongs to nobody, so state that outlives a request is kept here. Each name is
one SQLite file; each entry belongs to an owner, and no owner sees the entries of another.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
MOST_KEY_CHARACTERS = 512
MOST_VALUE_BYTES = 2**20

T = TypeVar("T")


class StoreError(ValueError):
    """A store cannot be opened, or an entry cannot be kept."""


class Store:
    """The entries of one owner in one store: JSON values by key. Its methods work in a thread; each returns once its
    change is on disk."""

    def __init__(self, file: _File, owner: str) -> None:
        self._file, self._owner = file, owner

    async def get(self, key: str) -> Any:
        """Return the value of a key; None where there is none."""
        row = await self._file.run(
            lambda db: db.execute(
                "SELECT value FROM entries WHERE owner = ? AND key = ?", (self._owner, key)
            ).fetchone()
        )
        return None if row is None else json.loads(row[0])

    async def put(self, key: str, value: Any) -> None:
        """Keep a JSON value under a key, over what was there.

        Raises:
            StoreError: it is no JSON, or too large.
        """
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"a store keeps JSON values: {error}") from None
        if len(key) > MOST_KEY_CHARACTERS or len(text.encode()) > MOST_VALUE_BYTES:
            raise StoreError(
                f"a key has at most {MOST_KEY_CHARACTERS} characters, and a value at most {MOST_VALUE_BYTES} bytes"
            )
        row = (self._owner, key, text, time.time())
        await self._file.run(lambda db: db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", row))

    async def delete(self, key: str) -> bool:
        """Forget a key. Returns whether it was there."""
        done = await self._file.run(
            lambda db: db.execute("DELETE FROM entries WHERE owner = ? AND key = ?", (self._owner, key)).rowcount
        )
        return done > 0

    async def items(self, prefix: str = "") -> dict[str, Any]:
        """Return all values whose key begins with `prefix`, by key, in the order of the keys."""
        rows = await self._file.run(
            lambda db: db.execute(
                "SELECT key, value FROM entries WHERE owner = ? AND substr(key, 1, ?) = ? ORDER BY key",
                (self._owner, len(prefix), prefix),
            ).fetchall()
        )
        return {key: json.loads(value) for key, value in rows}

    async def clear(self) -> int:
        """Forget everything of this owner. Returns how many entries there were."""
        return await self._file.run(
            lambda db: db.execute("DELETE FROM entries WHERE owner = ?", (self._owner,)).rowcount
        )


class Stores:
    """All stores under one folder, which is made when the first of them is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()

    def open(self, name: str, owner: str) -> Store:
        """Open the entries of an owner (`Caller.owner`) in the store of that name. Nothing is read or written yet.

        Raises:
            StoreError: no store can have this name.
        """
        if not NAME.fullmatch(name):
            raise StoreError(f"{name[:64]!r} is no name for a store: lower-case letters, digits and _, a letter first")
        with self._lock:
            file = self._files.setdefault(name, _File(self._folder / f"{name}.sqlite3"))
        return Store(file, owner)

    def close(self) -> None:
        """Close every file; what was kept is on disk already."""
        with self._lock:
            files, self._files = self._files, {}
        for file in files.values():
            file.close()


class _File:
    """One SQLite file, opened when it is first used. One thread at a time works with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work in a thread, as one transaction.

        Raises:
            StoreError: the file cannot be used.
        """
        return await asyncio.to_thread(self._run, work)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                if self._db is None:
                    self._db = self._open()
                with self._db:
                    return work(self._db)
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"the store {self._path.stem!r} cannot be used: {error}") from error

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        with db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS entries (owner TEXT, key TEXT, value TEXT NOT NULL, changed REAL NOT NULL, "
                "PRIMARY KEY (owner, key)) WITHOUT ROWID"
            )
        return db

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
