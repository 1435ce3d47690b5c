"""Store a collection on one machine: vectors in immutable FAISS files (segments), everything else in SQLite.

A segment is written and synced before the transaction that lists it. If that does not commit, the next writer deletes
the file. Readers see one state of the database and map the segments that it lists, so they never wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from waver.retrieval import database
from waver.retrieval.base import Busy, CollectionInfo, CollectionSpec, Filter, Listed, Passage, Vectors
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.database import Database
from waver.retrieval.faiss_reader import DATABASE, FaissReader
from waver.retrieval.faiss_writer import FaissWriter
from waver.retrieval.index import Kind
from waver.retrieval.storage import file_failure

LOCK = "lock"


class FaissStore(FaissReader):
    """Store of one collection in a folder."""

    def __init__(self, folder: Path, index: Kind | None = None, lock_seconds: float = 30.0) -> None:
        """Open a collection's folder.

        Args:
            index: the kind of every index, whatever its size; by size if None.
            lock_seconds: how long to wait for another writer.

        Raises:
            NoCollection: there is none in the folder.
            Damaged: what is there is not what was written.
        """
        super().__init__(folder, index)
        self._lock_seconds = lock_seconds

    @staticmethod
    def create(folder: Path, spec: CollectionSpec) -> None:
        """Create an empty collection in a folder that exists."""
        Database.create(folder / DATABASE, spec)

    @property
    def current(self) -> bool:
        return self.database.current

    @contextmanager
    def writing(self, wait: float | None = None, token: CancelToken | None = None) -> Iterator[FaissWriter]:
        with self.lock(self.folder, self._lock_seconds if wait is None else wait):
            yield FaissWriter(self, token)

    def digest(self, document: str) -> tuple[str, int] | None:
        return self.known(document, staged=False)

    @staticmethod
    @contextmanager
    def lock(folder: Path, seconds: float) -> Iterator[None]:
        """Hold the folder's lock. The operating system releases it if the process dies.

        Raises:
            NoCollection: there is no such folder.
            StorageError: its files cannot be written.
            Busy: somebody else held it for so many seconds.
        """
        lock = FileLock(folder / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise Busy(f"Somebody else is writing to the collection '{folder.name}'; try again later.") from None
        except OSError as error:
            raise file_failure(error, folder.name) from error
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

    def listed(self, after: str | None, count: int) -> list[Listed]:
        with self.database.reading() as db:
            rows = db.execute(
                "SELECT id, title, chunks, metadata FROM documents WHERE NOT staged AND id > ? ORDER BY id LIMIT ?",
                (after or "", count),
            )
            return [Listed(name, title, chunks, json.loads(tags)) for name, title, chunks, tags in rows]

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

    def info(self) -> CollectionInfo:
        # The segments are opened, and so checked: what a search would find damaged is not told to be well.
        self.check_files()
        with self.reading() as (db, _):
            documents, chunks = db.execute(
                "SELECT COUNT(*), COALESCE(SUM(chunks), 0) FROM documents WHERE NOT staged"
            ).fetchone()
            kinds = db.execute("SELECT kind FROM segments WHERE NOT staged ORDER BY rows DESC LIMIT 1").fetchone()
        return CollectionInfo(
            self.spec.name,
            documents,
            chunks,
            self.spec.dimension,
            self.spec.embedder,
            self.spec.chunk_tokens,
            self.spec.chunk_overlap,
            kinds[0] if kinds else "flat",
            _bytes(self.folder),
            self.spec.rerank,
        )


def _bytes(folder: Path) -> int:
    """Return the size of a folder's files, without files that are deleted meanwhile."""
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size
