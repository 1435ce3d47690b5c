"""Keep the turns of conversations until they have been made memories of, and the work that this takes.

A request brings its whole conversation again, so turns are recognised by a digest of themselves and the turn before:
only new ones are kept. Work is a row of the same file, so that it survives whatever ends the process.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from waver.retrieval.memory.span import ALWAYS, Span, within
from waver.retrieval.memory.unit import MOST_WORD

QUEUE = """
CREATE TABLE threads (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL, name TEXT,
    next INTEGER NOT NULL DEFAULT 0, covered INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX threads_name ON threads (owner, name);
CREATE TABLE turns (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL, thread INTEGER NOT NULL,
    number INTEGER NOT NULL, digest TEXT NOT NULL, speaker TEXT NOT NULL, text TEXT NOT NULL, source TEXT NOT NULL,
    said REAL NOT NULL, created REAL NOT NULL);
CREATE UNIQUE INDEX turns_digest ON turns (owner, digest);
CREATE UNIQUE INDEX turns_number ON turns (thread, number);
CREATE TABLE work (thread INTEGER PRIMARY KEY, owner INTEGER NOT NULL, due REAL NOT NULL, settings TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, erased INTEGER NOT NULL DEFAULT 0);
CREATE INDEX work_due ON work (due);"""
"""The tables of conversations that wait to be remembered, and of the work that this takes."""
MOST_TEXT = 8192
"""Characters of a turn that are kept."""
LEASE = 300.0
"""Seconds after which work that somebody began and did not end is begun anew."""
MOST_TRIES = 5
REMEMBERED = 5
"""Turns are recognised for so many times as long as their text is kept."""


@dataclass(frozen=True)
class Turn:
    """Something that one side of a conversation said, at `time` (seconds since 1970); `source` names it for whoever
    brought it."""

    speaker: str
    text: str
    time: float
    source: str = ""

    @property
    def stamp(self) -> str:
        return datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M")


@dataclass(frozen=True)
class Work:
    """Turns of a thread to be made memories of: `turns` from number `first` on, of which those before `covered` have
    been in a window, and the next window begins at number `next`."""

    thread: int
    owner: int
    owner_name: str
    settings: Mapping[str, Any]
    tries: int
    """Number of times that it was begun before."""
    erased: int
    """Number of times that something of the thread was erased."""
    due: float
    next: int
    covered: int
    numbers: tuple[int, ...]
    turns: tuple[Turn, ...]


def digests(turns: Sequence[Turn]) -> list[str]:
    """Return what each turn is recognised by: who said what, and what was said before."""
    out, before = [], ""
    for turn in turns:
        own = f"{turn.speaker}\0{turn.text}"
        out.append(hashlib.sha256(f"{before}\0\0{own}".encode("utf-8", "surrogatepass")).hexdigest())
        before = own
    return out


def append(
    db: sqlite3.Connection, owner: int, turns: Sequence[Turn], name: str | None, now: float, most: int
) -> tuple[int, int]:
    """Keep the new turns of a conversation; return its thread and how many they were.

    Args:
        name: of the conversation; None: the one that its last known turn belongs to, or a new one.
    """
    marks = digests(turns)
    known: dict[str, int] = {}
    for mark in marks:
        row = db.execute("SELECT thread FROM turns WHERE owner = ? AND digest = ?", (owner, mark)).fetchone()
        if row is not None:
            known[mark] = row[0]
    thread = _thread(db, owner, name, [known[mark] for mark in marks if mark in known])
    number = db.execute("SELECT coalesce(max(number), -1) + 1 FROM turns WHERE thread = ?", (thread,)).fetchone()[0]
    number = max(number, db.execute("SELECT covered FROM threads WHERE id = ?", (thread,)).fetchone()[0])
    new = 0
    for mark, turn in zip(marks, turns, strict=True):
        if mark in known or not turn.text.strip():
            continue
        known[mark] = thread
        row = (owner, thread, number + new, mark, turn.speaker[:MOST_WORD], turn.text[:MOST_TEXT],
               turn.source[:MOST_WORD], turn.time, now)  # fmt: skip
        db.execute(
            "INSERT INTO turns (owner, thread, number, digest, speaker, text, source, said, created) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        new += 1
    _limit(db, owner, most)
    return thread, new


def _thread(db: sqlite3.Connection, owner: int, name: str | None, known: Sequence[int]) -> int:
    if name is None and known:
        return known[-1]
    if name is not None:
        row = db.execute("SELECT id FROM threads WHERE owner = ? AND name = ?", (owner, name)).fetchone()
        if row is not None:
            return int(row[0])
    return int(db.execute("INSERT INTO threads (owner, name) VALUES (?, ?)", (owner, name)).lastrowid or 0)


def _limit(db: sqlite3.Connection, owner: int, most: int) -> None:
    """Blank the texts of all but the newest turns, and forget the oldest ones."""
    for statement, kept in (
        ("UPDATE turns SET text = '' WHERE owner = ? AND text != '' AND id < ?", most),
        ("DELETE FROM turns WHERE owner = ? AND id < ?", most * REMEMBERED),
    ):
        row = db.execute(
            "SELECT id FROM turns WHERE owner = ? ORDER BY id DESC LIMIT 1 OFFSET ?", (owner, kept - 1)
        ).fetchone()
        if row is not None:
            db.execute(statement, (owner, row[0]))


def schedule(db: sqlite3.Connection, owner: int, thread: int, due: float, settings: Mapping[str, Any]) -> None:
    """Put a thread's work on, over what was there."""
    db.execute(
        "INSERT INTO work (thread, owner, due, settings) VALUES (?, ?, ?, ?) ON CONFLICT (thread) "
        "DO UPDATE SET due = excluded.due, settings = excluded.settings",
        (thread, owner, due, json.dumps(settings)),
    )


def unread(db: sqlite3.Connection, thread: int) -> tuple[int, int]:
    """Return at which number a thread's next window begins, and how many turns there are from there on."""
    row = db.execute("SELECT next FROM threads WHERE id = ?", (thread,)).fetchone()
    start = 0 if row is None else row[0]
    end = db.execute("SELECT coalesce(max(number), -1) + 1 FROM turns WHERE thread = ?", (thread,)).fetchone()[0]
    return start, max(end - start, 0)


def next_due(db: sqlite3.Connection) -> float | None:
    """Return when the next work is due; None where there is none."""
    row = db.execute("SELECT min(due) FROM work").fetchone()
    return None if row[0] is None else float(row[0])


def claim(db: sqlite3.Connection, now: float, history: int) -> Work | None:
    """Take the work that has been due the longest, for `LEASE` seconds: with its unread turns and `history` before.

    Work that was tried too often is dropped with its turns.
    """
    while True:
        row = db.execute(
            "SELECT w.thread, w.owner, o.name, w.settings, w.tries, w.erased, t.next, t.covered FROM work w "
            "JOIN owners o ON o.id = w.owner JOIN threads t ON t.id = w.thread WHERE w.due <= ? ORDER BY w.due LIMIT 1",
            (now,),
        ).fetchone()
        if row is None:
            return None
        thread, owner, name, settings, tries, erased, start, covered = row
        if tries >= MOST_TRIES:
            end = sum(unread(db, thread))
            db.execute("UPDATE threads SET next = ?, covered = ? WHERE id = ?", (end, end, thread))
            db.execute("DELETE FROM work WHERE thread = ?", (thread,))
            continue
        due = now + LEASE
        db.execute("UPDATE work SET due = ?, tries = tries + 1 WHERE thread = ?", (due, thread))
        found = db.execute(
            "SELECT number, speaker, text, said, source FROM turns WHERE thread = ? AND number >= ? ORDER BY number",
            (thread, start - history),
        ).fetchall()
        turns = tuple(Turn(speaker, text, said, source) for _, speaker, text, said, source in found)
        numbers = tuple(each[0] for each in found)
        return Work(thread, owner, name, json.loads(settings), tries, erased, due, start, covered, numbers, turns)


def advance(db: sqlite3.Connection, work: Work, start: int, covered: int, due: float | None, keep: int) -> bool:
    """Record that a window was read: the next one begins at `start`. Texts of turns before `keep` are blanked.

    Args:
        due: when the thread's work goes on; None: it is done, unless more has come meanwhile.

    Returns:
        False where something of the thread was erased meanwhile: then nothing is changed.
    """
    row = db.execute("SELECT due, erased FROM work WHERE thread = ?", (work.thread,)).fetchone()
    if row is None or row[1] != work.erased:
        return False
    db.execute("UPDATE threads SET next = ?, covered = ? WHERE id = ?", (start, covered, work.thread))
    db.execute("UPDATE turns SET text = '' WHERE thread = ? AND number < ?", (work.thread, keep))
    if row[0] != work.due:  # scheduled anew
        db.execute("UPDATE work SET tries = 0 WHERE thread = ?", (work.thread,))
    elif due is None:
        db.execute("DELETE FROM work WHERE thread = ?", (work.thread,))
    else:
        db.execute("UPDATE work SET due = ?, tries = 0 WHERE thread = ?", (due, work.thread))
    return True


def postpone(db: sqlite3.Connection, work: Work, due: float) -> None:
    """Try work again later."""
    db.execute("UPDATE work SET due = ? WHERE thread = ? AND due = ?", (due, work.thread, work.due))


def waiting(db: sqlite3.Connection, owner: int, span: Span = ALWAYS) -> list[dict[str, object]]:
    """Return the turns whose text is still kept, as JSON objects of an export."""
    where, values = within(span)
    rows = db.execute(
        f"SELECT speaker, text, said FROM turns WHERE owner = ? AND text != ''{where} ORDER BY id", (owner, *values)
    )
    return [
        {"object": "turn", "speaker": speaker, "text": text, "time": datetime.fromtimestamp(said, UTC).isoformat()}
        for speaker, text, said in rows
    ]


def erase(db: sqlite3.Connection, owner: int, span: Span) -> None:
    """Delete the turns of a stretch of time; with an open one, all conversations. What is being made of erased turns at
    this moment is not stored."""
    where, values = within(span)
    db.execute(f"DELETE FROM turns WHERE owner = ?{where}", (owner, *values))
    db.execute("UPDATE work SET due = 0, erased = erased + 1 WHERE owner = ?", (owner,))
    if span == ALWAYS:
        for table in ("threads", "work"):
            db.execute(f"DELETE FROM {table} WHERE owner = ?", (owner,))
