"""Convert errors of the file system and of SQLite to errors of retrieval: disk full, read-only, damaged, or locked."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from waver.retrieval.base import Busy, Damaged, NoCollection, NoSpace, RetrievalError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
MISSING = (errno.ENOENT, errno.ENOTDIR)
FOREIGN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA)
"""SQLite's error codes for a file that is corrupt or no database."""


@contextmanager
def storing(collection: str) -> Iterator[None]:
    """Convert errors of the file system.

    Raises:
        RetrievalError: for every `OSError` within, with a sentence that says what is wrong.
    """
    try:
        yield
    except OSError as error:
        raise file_failure(error, collection) from error


def file_failure(error: OSError, collection: str) -> RetrievalError:
    """Convert an error of the file system; the message does not contain the path."""
    name = f"The collection '{collection}'"
    if error.errno in MISSING:
        return NoCollection(f"There is no collection '{collection}'.")
    if error.errno in FULL:
        return NoSpace(f"{name} cannot be written: the disk is full. Nothing was changed.")
    if error.errno in FORBIDDEN:
        return StorageError(f"{name} cannot be opened or written: its folder is read-only for the server.")
    reason = os.strerror(error.errno) if error.errno else "the disk failed"
    return StorageError(f"{name} cannot be read or written: {reason}.")


def database_failure(error: sqlite3.DatabaseError, file: str, collection: str, new: bool = False) -> RetrievalError:
    """Convert an error of SQLite. `new`: the file was just created, so it cannot be damaged."""
    name, code = f"The collection '{collection}'", getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"{name} cannot be written: the disk is full. Nothing was changed.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StorageError(f"{name} cannot be opened or written: its folder is read-only for the server.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy(f"Somebody else is writing to the collection '{collection}'; try again later.")
    # Of plain errors only tables that are not there say something about the file; others are about the statement.
    if not new and (code in FOREIGN or (code == sqlite3.SQLITE_ERROR and "no such" in str(error))):
        return Damaged(f"{name} is damaged: {file}: {error}.")
    return StorageError(f"{name} cannot be used: {error}.")
