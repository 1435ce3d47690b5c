"""Read and change the rows of one owner's memories, within a transaction of `waver.retrieval.memory.database`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

from waver.retrieval.base import Vectors
from waver.retrieval.memory import turns
from waver.retrieval.memory.database import Layout
from waver.retrieval.memory.owned import OWNERS, changed
from waver.retrieval.memory.span import ALWAYS, Span, within
from waver.retrieval.memory.unit import Memory, Unit

LAYOUT = Layout(
    mark=0x574D454D,  # "WMEM"
    version=1,
    name="memories",
    schema=OWNERS
    + turns.QUEUE
    + """
CREATE TABLE memories (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL, digest TEXT NOT NULL,
    data TEXT NOT NULL, created REAL NOT NULL, archived_by INTEGER, embedder TEXT NOT NULL, vector BLOB NOT NULL);
CREATE UNIQUE INDEX memories_digest ON memories (owner, digest);
CREATE INDEX memories_archived ON memories (archived_by);
CREATE TABLE scores (owner INTEGER NOT NULL, created REAL NOT NULL, novelty REAL NOT NULL, surprisal REAL);
CREATE INDEX scores_owner ON scores (owner, created);
""",
)
"""Owners, memories with their vectors, turns that wait, and work to do."""
CHUNK = 500
"""Ids in one statement."""
COLUMNS = "id, created, data, archived_by"


def add(
    db: sqlite3.Connection, owner: int, units: Sequence[Unit], vectors: Vectors, embedder: str, now: float
) -> list[int]:
    """Store units with their unit vectors `[units, dimension]`; return the ids of those that are new: what has the same
    words as one that is there is left out."""
    made = []
    for unit, vector in zip(units, vectors, strict=True):
        row = (owner, unit.digest, unit.model_dump_json(exclude_defaults=True), now, embedder, vector.tobytes())
        done = db.execute(
            "INSERT OR IGNORE INTO memories (owner, digest, data, created, embedder, vector) VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        if done.rowcount:
            made.append(int(done.lastrowid or 0))
    if made:
        changed(db, owner)
    return made


def archive(db: sqlite3.Connection, owner: int, ids: Sequence[int], abstract: int) -> None:
    """Move memories behind the abstract that stands for them."""
    db.executemany(
        "UPDATE memories SET archived_by = ? WHERE owner = ? AND id = ? AND id != ?",
        [(abstract, owner, each, abstract) for each in ids],
    )
    changed(db, owner)


def remove(db: sqlite3.Connection, owner: int, ids: Sequence[int], abstracts: bool = True) -> int:
    """Delete memories; return how many. What a deleted abstract had archived is live again.

    Args:
        abstracts: also delete the abstracts that were written from them, as these repeat what they said.
    """
    doomed, frontier = set(ids), set(ids)
    while frontier and abstracts:
        rows = _each(db, "SELECT archived_by FROM memories WHERE id IN ({})", frontier)
        frontier = {parent for (parent,) in rows if parent is not None} - doomed
        doomed |= frontier
    count = 0
    for some in _chunks(sorted(doomed)):
        marks = ",".join("?" * len(some))
        count += db.execute(f"DELETE FROM memories WHERE owner = ? AND id IN ({marks})", (owner, *some)).rowcount
        db.execute(f"UPDATE memories SET archived_by = NULL WHERE owner = ? AND archived_by IN ({marks})",
                   (owner, *some))  # fmt: skip
    if count:
        changed(db, owner)
    return count


def erase(db: sqlite3.Connection, owner: int, span: Span) -> int:
    """Delete what was remembered in a stretch of time: memories, abstracts made of them, and turns that wait. With an
    open stretch nothing is left of the owner. Returns how many memories there were."""
    where, values = within(span)
    ids = [row[0] for row in db.execute(f"SELECT id FROM memories WHERE owner = ?{where}", (owner, *values))]
    count = remove(db, owner, ids)
    db.execute(f"DELETE FROM scores WHERE owner = ?{where}", (owner, *values))
    turns.erase(db, owner, span)
    if span == ALWAYS:
        db.execute("DELETE FROM memories WHERE owner = ?", (owner,))
        db.execute("DELETE FROM owners WHERE id = ?", (owner,))
    return count


def listed(db: sqlite3.Connection, owner: int, span: Span = ALWAYS, after_id: int = 0, most: int = -1) -> list[Memory]:
    """Return memories in the order of their ids, archived ones included: at most so many with ids from `after_id`."""
    where, values = within(span)
    rows = db.execute(
        f"SELECT {COLUMNS} FROM memories WHERE owner = ? AND id > ?{where} ORDER BY id LIMIT ?",
        (owner, after_id, *values, most),
    )
    return [memory(row) for row in rows]


def memory(row: Sequence[object]) -> Memory:
    """Make a memory of a row of `COLUMNS`."""
    number, created, data, parent = row
    return Memory(
        id=number,
        created=datetime.fromtimestamp(created, UTC),  # type: ignore[arg-type]
        unit=Unit.model_validate_json(str(data)),
        archived_by=parent,
    )


def limit(db: sqlite3.Connection, owner: int, most: int, oldest: float | None) -> None:
    """Forget memories from before `oldest`, and beyond `most` the oldest ones, of which archived ones go first."""
    if oldest is not None:
        rows = db.execute("SELECT id FROM memories WHERE owner = ? AND created < ?", (owner, oldest)).fetchall()
        remove(db, owner, [row[0] for row in rows])
        db.execute("DELETE FROM turns WHERE owner = ? AND created < ?", (owner, oldest))
        db.execute("DELETE FROM scores WHERE owner = ? AND created < ?", (owner, oldest))
    count = db.execute("SELECT count(*) FROM memories WHERE owner = ?", (owner,)).fetchone()[0]
    if count > most:
        rows = db.execute(
            "SELECT id FROM memories WHERE owner = ? ORDER BY archived_by IS NULL, created, id LIMIT ?",
            (owner, count - most),
        ).fetchall()
        remove(db, owner, [row[0] for row in rows], abstracts=False)


def expiring(db: sqlite3.Connection, oldest: float) -> list[int]:
    """Return the owners who have something from before a moment."""
    rows = db.execute(
        "SELECT owner FROM memories WHERE created < ? UNION SELECT owner FROM turns WHERE created < ?", (oldest, oldest)
    )
    return [row[0] for row in rows]


def _each(db: sqlite3.Connection, statement: str, ids: set[int]) -> list[tuple[int | None]]:
    found = []
    for some in _chunks(sorted(ids)):
        found += db.execute(statement.format(",".join("?" * len(some))), some).fetchall()
    return found


def _chunks(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]


def as_line(value: object) -> str:
    """Return a line of an export."""
    return json.dumps(value, ensure_ascii=False) + "\n"
