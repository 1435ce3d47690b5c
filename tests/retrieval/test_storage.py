"""Disk failures of a collection are reported as what they are (full, read-only, damaged), and stored data stays."""

from __future__ import annotations

import errno
import json
import secrets
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.retrieval.conftest import new_store, prepared, unit
from waver.retrieval.base import Busy, Damaged, NoCollection, NoSpace, StorageError
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.faiss_store import FaissStore
from waver.retrieval.library import FaissBackend
from waver.retrieval.storage import database_failure, file_failure


@pytest.fixture
def store(tmp_path: Path) -> FaissStore:
    made = new_store(tmp_path)
    with made.writing() as writer:
        writer.add([prepared(f"d{i}", i) for i in range(5)])
    return made


def whole(store: FaissStore) -> bool:
    """Return whether every document is found, and no file is left over."""
    found = {each.document for each in store.find(unit(0)[0], None, 20, {})[0]}
    with store.database.reading() as db:
        named = {row[0] for row in db.execute("SELECT file FROM segments")}
    return found == {f"d{i}" for i in range(5)} and {file.name for file in store.folder.glob("*.faiss")} == named


def test_a_disk_that_is_full_for_vectors(store: FaissStore, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = secrets.token_hex

    def token(count: int) -> str:
        name = draw(count)
        (store.folder / f"{name}.faiss").symlink_to("/dev/full")
        return name

    with monkeypatch.context() as patch:
        patch.setattr("waver.retrieval.faiss_writer.secrets.token_hex", token)
        with pytest.raises(NoSpace, match=r"'notes'.*disk is full"), store.writing() as writer:
            writer.add([prepared("new", 9)])
    assert whole(store)
    with store.writing() as writer:
        writer.add([prepared("d0", 0)])
    assert whole(store)


def test_a_disk_that_is_full_for_texts(store: FaissStore) -> None:
    with store.database.reading() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
    long = prepared("new", 9, chunks=2000)
    with pytest.raises(NoSpace, match="disk is full"), store.writing() as writer:
        writer.add([long])
    store.close()
    again = FaissStore(store.folder, lock_seconds=0.2)
    with again.writing():
        pass  # what is named nowhere is deleted
    assert whole(again)
    again.close()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(store: FaissStore, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, "no", str(store.folder / "lock"))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(StorageError, match="read-only") as found, store.writing():
        pass
    assert not isinstance(found.value, NoSpace | NoCollection)
    assert str(store.folder) not in str(found.value)
    assert whole(store)


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    backend = FaissBackend(RetrievalConfig(path=tmp_path / "file" / "collections"))
    with pytest.raises(StorageError, match="cannot be written"):
        backend.create(new_store(tmp_path).spec)


def test_what_sqlite_says() -> None:
    def failure(code: int, text: str = "x") -> type[BaseException]:
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code
        return type(database_failure(error, "collection.sqlite3", "notes"))

    assert failure(sqlite3.SQLITE_FULL) is NoSpace
    assert failure(sqlite3.SQLITE_READONLY) is failure(sqlite3.SQLITE_CANTOPEN) is StorageError
    assert failure(sqlite3.SQLITE_IOERR) is StorageError
    assert failure(sqlite3.SQLITE_BUSY) is Busy
    assert failure(sqlite3.SQLITE_CORRUPT) is failure(sqlite3.SQLITE_NOTADB) is Damaged
    assert failure(sqlite3.SQLITE_ERROR, "no such table: chunks") is Damaged
    assert failure(sqlite3.SQLITE_ERROR, "too many SQL variables") is StorageError


def test_what_the_system_says() -> None:
    for code, kind in (
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.ENOENT, NoCollection),
        (errno.EIO, StorageError),
    ):
        found = file_failure(OSError(code, "x", "/home/somebody/secret"), "notes")
        assert type(found) is kind
        assert "/home" not in str(found)


def test_a_small_disk_and_a_read_only_one(tmp_path: Path) -> None:
    private = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*private, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    done = subprocess.run(
        [*private, sys.executable, "-m", "tests.retrieval.small_disk", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tuple(step[:2]) for step in steps] == [
        ("small", 1),
        ("large", "NoSpace"),
        ("small again", 2),
        ("full", "NoSpace"),
        ("find", 5),
        ("make", "NoSpace"),
        ("open read-only", "StorageError"),
        ("make read-only", "StorageError"),
        ("delete read-only", "StorageError"),
    ], done.stderr
    assert not any(str(tmp_path) in json.dumps(step) for step in steps)
    assert all("read-only" in step[2].lower() for step in steps[-3:])
