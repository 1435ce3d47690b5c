"""Store the texts, metadata and manifest of a collection in SQLite. A change takes effect when its transaction
commits."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from waver.retrieval.base import CollectionSpec, Damaged, EmbeddedDocument, Filter, NoCollection, Passage, Scalar
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.chunking import headed
from waver.retrieval.connections import Connections, marks, reading, writing
from waver.retrieval.storage import database_failure, file_failure
from waver.retrieval.words import repeated_terms, spaced

MARK, FORMAT = 0x57415652, 3  # "WAVR"
WORDS = """
CREATE VIRTUAL TABLE words USING fts5 (text, filler,
    tokenize="porter unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc'")"""
"""The index of words. `text` is each chunk as `waver.retrieval.words.spaced` has it, after its document's title."""
FILLER = "x " * 32
"""Words in every row, which no search looks for. SQLite's BM25 has b = 0.75 and no other, which ranks a short remark
before a sentence that says more. With them it is 0.75 a / (a + 32) where rows have `a` words of text on average: 0.33
for turns of a conversation, 0.56 for whole chunks."""
SCHEMA = f"""
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, title TEXT NOT NULL,
    metadata TEXT NOT NULL, digest TEXT NOT NULL, chunks INTEGER NOT NULL, staged INTEGER NOT NULL);
CREATE UNIQUE INDEX documents_id ON documents (id, staged);
CREATE TABLE tags (name TEXT NOT NULL, value TEXT NOT NULL, document INTEGER NOT NULL,
    PRIMARY KEY (name, value, document)) WITHOUT ROWID;
CREATE INDEX tags_document ON tags (document);
CREATE TABLE summaries (document INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (document, kind)) WITHOUT ROWID;
CREATE TABLE chunks (id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL, number INTEGER NOT NULL,
    text TEXT NOT NULL);
CREATE INDEX chunks_document ON chunks (document, number);
{WORDS};
CREATE TABLE segments (file TEXT PRIMARY KEY, kind TEXT NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL, ids BLOB NOT NULL, staged INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE dead (chunk INTEGER PRIMARY KEY);
"""
TELLING = 1e-4
"""SQLite gives words that half of the chunks have next to nothing: what has only such words is found if nothing else
is, as in a collection of two chunks."""


class Database:
    """A SQLite file with a connection for each thread that reads, and one writer at a time."""

    def __init__(self, file: Path) -> None:
        """Open the database of a collection.

        Raises:
            NoCollection: there is no such file.
            StorageError: it cannot be reached.
            Damaged: it is none of ours.
        """
        self._file = file
        self._connections = Connections(self._connect)
        try:
            self._inode = file.stat().st_ino
        except OSError as error:
            raise file_failure(error, file.parent.name) from error
        with self.reading() as db:
            found = marks(db)
        if found in ((MARK, 1), (MARK, 2)):
            self._index_words_anew()
        elif found != (MARK, FORMAT):
            raise Damaged(f"{file.name} of collection '{file.parent.name}' was not written by this release of Waver.")

    def _index_words_anew(self) -> None:
        """Bring a collection to the format of now: in format 1 the index split words at spaces alone, in format 2 its
        rows had no filler."""
        with self.changing() as db:
            if marks(db)[1] == FORMAT:
                return  # another process did
            db.execute("DROP TABLE words")
            db.execute(WORDS)
            rows = db.execute("SELECT c.id, d.title, c.text FROM chunks c JOIN documents d ON d.key = c.document")
            index_words(db, ((row[0], indexed(row[1], row[2])) for row in rows))
            db.execute(f"PRAGMA user_version = {FORMAT}")

    @staticmethod
    def create(file: Path, spec: CollectionSpec) -> None:
        """Write an empty database.

        Raises:
            NoSpace: the disk is full.
            StorageError: the file cannot be written, or this Python's SQLite lacks full-text search.
        """
        try:
            db = sqlite3.connect(file, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise database_failure(error, file.name, spec.name, new=True) from error
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA application_id = {MARK}")
            db.execute(f"PRAGMA user_version = {FORMAT}")
            db.executescript(SCHEMA)
            values = [("spec", json.dumps(asdict(spec))), ("generation", "0")]
            db.executemany("INSERT INTO manifest VALUES (?, ?)", values)
        except sqlite3.OperationalError as error:
            raise database_failure(error, file.name, spec.name, new=True) from error
        finally:
            db.close()

    @property
    def current(self) -> bool:
        """Return whether the opened file is still the one at its path."""
        try:
            return self._file.stat().st_ino == self._inode
        except OSError:
            return False

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if not self.current:
            raise NoCollection(f"There is no collection '{self._file.parent.name}' any more.")
        try:
            with self._connections.one() as db:
                yield db
        except sqlite3.DatabaseError as error:
            raise database_failure(error, self._file.name, self._file.parent.name) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False, timeout=30)
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA synchronous = FULL")
        return db

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open a read transaction: it sees one state of the collection, whatever is written meanwhile."""
        with self._connection() as db, reading(db):
            yield db

    @contextmanager
    def changing(self, token: CancelToken | None = None) -> Iterator[sqlite3.Connection]:
        """Open a write transaction. It commits as a whole, synced to disk, or not at all; a cancelled token prevents
        the commit."""
        with self._connection() as db, writing(db):
            yield db
            db.execute("UPDATE manifest SET value = value + 1 WHERE key = 'generation'")
            if token is not None:
                token.commit()

    def close(self) -> None:
        """Close the connections; those in use are closed once they are no longer."""
        self._connections.close()


def spec(db: sqlite3.Connection) -> CollectionSpec:
    return CollectionSpec(**json.loads(_manifest(db, "spec")))


def generation(db: sqlite3.Connection) -> int:
    """Return the number that grows with every change."""
    return int(_manifest(db, "generation"))


def _manifest(db: sqlite3.Connection, key: str) -> str:
    row = db.execute("SELECT value FROM manifest WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise Damaged(f"The collection's manifest lacks '{key}'.")
    return str(row[0])


def next_chunk(db: sqlite3.Connection) -> int:
    """Return the id of the next chunk; ids are never reused."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()
    return 1 + (row[0] if row else 0)


def insert(db: sqlite3.Connection, documents: Sequence[EmbeddedDocument], staged: bool) -> None:
    """Add documents with their chunks, numbered from `next_chunk`; documents with the same ids are deleted."""
    first = next_chunk(db)
    for prepared in documents:
        it = prepared.document
        forget(db, it.id, staged)
        key = db.execute(
            "INSERT INTO documents (id, title, metadata, digest, chunks, staged) VALUES (?, ?, ?, ?, ?, ?)",
            (it.id, it.title, json.dumps(dict(it.metadata)), it.digest, len(prepared.chunks), int(staged)),
        ).lastrowid
        db.executemany("INSERT INTO tags VALUES (?, ?, ?)", [(k, tag(v), key) for k, v in it.metadata.items()])
        db.execute("INSERT INTO summaries VALUES (?, 'lead', ?)", (key, prepared.summary))
        rows = [(first + i, key, i, text) for i, text in enumerate(prepared.chunks)]
        db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)
        index_words(db, ((row[0], indexed(it.title, row[3])) for row in rows))
        first += len(rows)


def index_words(db: sqlite3.Connection, lines: Iterable[tuple[int, str]]) -> None:
    """Add chunks to the index of words: the id of each, and what it can be found by."""
    db.executemany("INSERT INTO words (rowid, text, filler) VALUES (?, ?, ?)", ((*line, FILLER) for line in lines))


def indexed(title: str, text: str) -> str:
    """Return what a chunk can be found by: its words and those of its document's title."""
    return spaced(headed(title, text))


def forget(db: sqlite3.Connection, document: str, staged: bool) -> bool:
    """Delete a document and mark its vectors as deleted; return whether there was one."""
    row = db.execute("SELECT key FROM documents WHERE id = ? AND staged = ?", (document, int(staged))).fetchone()
    if row is None:
        return False
    db.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM chunks WHERE document = ?)", row)
    db.execute("INSERT INTO dead SELECT id FROM chunks WHERE document = ?", row)
    for table in ("chunks", "tags", "summaries"):
        db.execute(f"DELETE FROM {table} WHERE document = ?", row)
    db.execute("DELETE FROM documents WHERE key = ?", row)
    return True


def chunks_where(db: sqlite3.Connection, where: Filter) -> Iterator[int]:
    """Return the ids of chunks whose documents match a metadata filter."""
    condition, values = _condition(where)
    rows = db.execute(f"SELECT id FROM chunks c WHERE {condition}", values)
    return (row[0] for row in rows)


def matching(db: sqlite3.Connection, words: str, count: int, where: Filter) -> list[tuple[int, float]]:
    """Return the ids and BM25 scores (k1 = 1.2, b as `FILLER` has it) of chunks that contain one of the words, best
    first."""
    found = repeated_terms(words)
    if not found:
        return []
    any_of = " OR ".join(f'"{word}"' for word in found)
    condition, values = _condition(where)
    rows = db.execute(
        "SELECT w.rowid, -bm25(words) FROM words w JOIN chunks c ON c.id = w.rowid JOIN documents d "
        f"ON d.key = c.document WHERE words MATCH ? AND NOT d.staged AND {condition} ORDER BY bm25(words), w.rowid "
        "LIMIT ?",
        (f"text : ({any_of})", *values, count),
    )
    found_all = [(row[0], row[1]) for row in rows]
    return [each for each in found_all if each[1] > TELLING] or found_all


def passages(db: sqlite3.Connection, scores: Mapping[int, float]) -> dict[int, Passage]:
    """Return passages by chunk id, without those that do not exist."""
    rows = db.execute(
        "SELECT c.id, d.id, c.number, c.text, d.title, d.metadata FROM chunks c JOIN documents d ON d.key = c.document "
        f"WHERE NOT d.staged AND c.id IN ({','.join('?' * len(scores))})",
        list(scores),
    )
    return {row[0]: Passage(row[1], row[2], scores[row[0]], row[3], row[4], json.loads(row[5])) for row in rows}


def _condition(where: Filter) -> tuple[str, list[str]]:
    parts, values = ["1"], []
    for name, wanted in where.items():
        several = [wanted] if isinstance(wanted, str | int | float | None) else list(wanted)
        marks = ",".join("?" * len(several))
        parts.append(f"c.document IN (SELECT document FROM tags WHERE name = ? AND value IN ({marks}))")
        values += [name, *map(tag, several)]
    return " AND ".join(parts), values


def tag(value: Scalar) -> str:
    """Encode a metadata value for comparison: 1 and 1.0 are the same, 1 and true are not."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)
