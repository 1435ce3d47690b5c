"""Keep facts that correct what a model remembers: plain sentences of an owner, edited over time.

A fact with the subject and relation of an earlier one replaces it. What was replaced stays readable, with the time at
which it ended, until it is erased; only what holds now is searched.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from waver.retrieval.base import BadDocument, RetrievalError, Vectors
from waver.retrieval.embedder import Embedder
from waver.retrieval.memory.database import Layout
from waver.retrieval.memory.owned import OWNERS, OwnedStore, Rows, changed, made_owner, owner_of
from waver.retrieval.memory.unit import MOST_CONTENT, encodable, sentence

FILE = "facts.sqlite3"
LAYOUT = Layout(
    mark=0x57464354,  # "WFCT"
    version=1,
    name="facts",
    schema=OWNERS
    + """
CREATE TABLE facts (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL, text TEXT NOT NULL,
    subject TEXT, relation TEXT, begun REAL NOT NULL, ended REAL, embedder TEXT NOT NULL, vector BLOB NOT NULL);
CREATE INDEX facts_owner ON facts (owner, ended);
CREATE INDEX facts_key ON facts (owner, subject, relation);
""",
)
COLUMNS = "id, text, subject, relation, begun, ended"
OUTSIDE = ("object", "format", "id", "begun", "ended")
"""Keys of an export that are not the statement's."""
THREADS = 2
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(encodable)]


class Statement(BaseModel):
    """A fact as it is given: a self-contained sentence, and what it says something about, if that is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1, max_length=MOST_CONTENT), AfterValidator(encodable)]
    subject: Name | None = None
    relation: Name | None = None

    @property
    def key(self) -> tuple[str, str] | None:
        """Return what an earlier statement must have in common with it to be replaced."""
        if self.subject is None or self.relation is None:
            return None
        return self.subject.casefold().strip(), self.relation.casefold().strip()


def read_statement(data: Any) -> Statement:
    """Read the JSON object of an export, or one written by hand: its `text`, and `subject` and `relation` if known.

    Raises:
        BadDocument: it is none.
    """
    if not isinstance(data, Mapping) or data.get("object", "fact") != "fact":
        raise BadDocument("A fact is a JSON object with a 'text'.")
    if data.get("format", LAYOUT.version) != LAYOUT.version:
        raise BadDocument(f"This is no fact of format {LAYOUT.version}.")
    try:
        return Statement.model_validate({key: value for key, value in data.items() if key not in OUTSIDE})
    except ValidationError as error:
        raise BadDocument(f"A fact cannot be kept: {sentence(error)}.") from None


@dataclass(frozen=True)
class Fact:
    """A statement with its id, and the time in which it held (seconds since 1970); `ended` is None while it does."""

    id: int
    text: str
    subject: str | None
    relation: str | None
    begun: float
    ended: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON object of an answer or an export."""
        out: dict[str, Any] = {"object": "fact", "format": LAYOUT.version, "id": self.id, "text": self.text}
        out |= {key: value for key in ("subject", "relation") if (value := getattr(self, key)) is not None}
        for key in ("begun", "ended"):
            if (moment := getattr(self, key)) is not None:
                out[key] = datetime.fromtimestamp(moment, UTC).isoformat()
        return out


class Facts(OwnedStore[tuple[list[Fact], Vectors]]):
    """The facts of all owners in one folder."""

    def __init__(
        self,
        folder: Path,
        most: int,
        lock_seconds: float,
        embedder: Callable[[], Embedder],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up; nothing is read or written yet.

        Args:
            most: facts of an owner, those that were replaced included. clock: seconds since 1970.
        """
        super().__init__(folder / FILE, LAYOUT, lock_seconds, embedder, THREADS, clock)
        self.most = most

    def of(self, owner: str) -> OwnFacts:
        """Return the facts of one owner."""
        return OwnFacts(self, owner)

    async def search(self, owners: Sequence[str], question: str, count: int) -> list[tuple[Fact, float]]:
        """Return the `count` facts of these owners that hold now and are the most similar to a question, with their
        cosines; most similar first, of equal ones the newest."""

        def work() -> list[tuple[Fact, float]]:
            found: list[tuple[Fact, float]] = []
            for owner in dict.fromkeys(owners):
                facts, vectors = self._now(owner)
                if facts:
                    found += zip(facts, (vectors @ self.embedder().question(question)).tolist(), strict=True)
            return nearest(found, count)

        return await self.run(work)

    def _now(self, name: str) -> tuple[list[Fact], Vectors]:
        """Return the facts of an owner that hold, and their vectors. Blocks."""

        def made(read: Rows) -> tuple[list[Fact], Vectors]:
            def embed(places: Sequence[int]) -> Vectors:
                return self.embedder().embed([read[i][1] for i in places])

            return [Fact(*each[:6]) for each in read], self.vectors("facts", read, embed)

        select = f"SELECT {COLUMNS}, embedder, vector FROM facts WHERE owner = ? AND ended IS NULL ORDER BY id"
        return self.hold(name, ([], np.zeros((0, 1), np.float32)), select, made)


def nearest(scored: Sequence[tuple[Fact, float]], count: int) -> list[tuple[Fact, float]]:
    """Return the `count` best of facts with their cosines, best first; of equal ones the newest."""
    return sorted(scored, key=lambda each: (-each[1], -each[0].begun, -each[0].id))[:count]


class OwnFacts:
    """The facts of one owner. No method sees or changes another's."""

    def __init__(self, all_: Facts, name: str) -> None:
        self._all, self.name = all_, name

    async def add(self, statements: Sequence[Statement]) -> list[Fact]:
        """Add facts in their order, all or none; each ends those that hold with its subject and relation, or its words.

        Raises:
            RetrievalError: there is no room for them, or they cannot be written.
        """

        def work() -> list[Fact]:
            embedder = self._all.embedder()
            vectors = embedder.embed([each.text for each in statements])
            now = self._all.clock()
            with self._all.file.changing() as db:
                owner = made_owner(db, self.name)
                made = [
                    _add(db, owner, each, now, embedder.fingerprint, vector.tobytes())
                    for each, vector in zip(statements, vectors, strict=True)
                ]
                count = db.execute("SELECT count(*) FROM facts WHERE owner = ?", (owner,)).fetchone()[0]
                if count > self._all.most:
                    raise RetrievalError(
                        f"There would be {count} facts; at most {self._all.most} are kept, those that were replaced "
                        "included. Erase some first."
                    )
                changed(db, owner)
                return made

        return await self._all.run(work) if statements else []

    async def listed(self, at: float | None = None, history: bool = False) -> list[Fact]:
        """Return facts in the order of their ids: those that hold now, or held at a moment (seconds since 1970), or
        with `history` all of them."""

        def work(db: sqlite3.Connection, owner: int) -> list[Fact]:
            where: str = ""
            values: tuple[float, ...] = ()
            if not history and at is None:
                where = " AND ended IS NULL"
            elif at is not None:
                where, values = " AND begun <= ? AND (ended IS NULL OR ended > ?)", (at, at)
            rows = db.execute(f"SELECT {COLUMNS} FROM facts WHERE owner = ?{where} ORDER BY id", (owner, *values))
            return [Fact(*row) for row in rows]

        return await self._all.run(self._all.read, self.name, work, [])

    async def get(self, fact: int) -> Fact | None:
        """Return one fact, whether it still holds or not; None where there is none."""

        def work(db: sqlite3.Connection, owner: int) -> Fact | None:
            row = db.execute(f"SELECT {COLUMNS} FROM facts WHERE owner = ? AND id = ?", (owner, fact)).fetchone()
            return None if row is None else Fact(*row)

        return await self._all.run(self._all.read, self.name, work, None)

    async def forget(self, fact: int) -> bool:
        """Erase one fact from the file; return whether there was one. What it had replaced does not hold again."""
        return await self._all.run(self._erase, "id = ?", (fact,)) > 0

    async def erase(self) -> int:
        """Erase all facts, and return how many there were."""
        return await self._all.run(self._erase, "1", ())

    def _erase(self, where: str, values: Sequence[Any]) -> int:
        if not self._all.file.there:
            return 0
        with self._all.file.changing() as db:
            owner = owner_of(db, self.name)
            if owner is None:
                return 0
            count = db.execute(f"DELETE FROM facts WHERE owner = ? AND {where}", (owner, *values)).rowcount
            changed(db, owner)
            if not db.execute("SELECT 1 FROM facts WHERE owner = ? LIMIT 1", (owner,)).fetchone():
                db.execute("DELETE FROM owners WHERE id = ?", (owner,))
        self._all.forget_held(self.name)
        if count:
            self._all.file.purge()
        return count


def _add(db: sqlite3.Connection, owner: int, statement: Statement, now: float, embedder: str, vector: bytes) -> Fact:
    key = statement.key
    ended = "UPDATE facts SET ended = ? WHERE owner = ? AND ended IS NULL AND "
    db.execute(ended + "text = ?", (now, owner, statement.text))
    if key is not None:
        db.execute(ended + "subject = ? AND relation = ?", (now, owner, *key))
    subject, relation = (statement.subject, statement.relation) if key is None else key
    row = (owner, statement.text, subject, relation, now, embedder, vector)
    done = db.execute(
        "INSERT INTO facts (owner, text, subject, relation, begun, embedder, vector) VALUES (?, ?, ?, ?, ?, ?, ?)", row
    )
    return Fact(int(done.lastrowid or 0), statement.text, subject, relation, now)
