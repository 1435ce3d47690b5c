"""Open the memories of an owner. Whatever is changed is on disk when a method returns.

Methods are coroutines that work in threads of their own. The file is made when the first thing is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from waver.retrieval.base import Vectors
from waver.retrieval.embedder import Embedder
from waver.retrieval.memory import rows, turns
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.index import Index
from waver.retrieval.memory.owned import Rows, made_owner, owner_of
from waver.retrieval.memory.queue import QueuedStore
from waver.retrieval.memory.span import ALWAYS, Span
from waver.retrieval.memory.turns import Turn, Work
from waver.retrieval.memory.unit import Memory, Unit

FILE = "memories.sqlite3"
THREADS = 4
DAY = 86_400.0


class Memories(QueuedStore[Index]):
    """The memories of all owners in one folder."""

    def __init__(
        self,
        folder: Path,
        config: MemoryConfig,
        embedder: Callable[[], Embedder],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up; nothing is read or written yet.

        Args:
            embedder: returns what makes the vectors. clock: seconds since 1970.
        """
        super().__init__(folder / FILE, rows.LAYOUT, config, embedder, THREADS, clock)

    def of(self, owner: str) -> OwnMemories:
        """Return the memories of one owner."""
        return OwnMemories(self, owner)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors `[texts, dimension]`.

        Raises:
            Unavailable: the embedder cannot be loaded.
        """
        return await self.run(lambda: self.embedder().embed(list(texts)))

    async def question(self, text: str) -> Vectors:
        """Return the unit vector of a question; recent ones are cached."""
        return await self.run(lambda: self.embedder().question(text))

    def embedded(self, units: Sequence[Unit]) -> tuple[Vectors, str]:
        """Return the vectors of units and the fingerprint of the weights that made them. Blocks."""
        embedder = self.embedder()
        return embedder.embed([unit.content for unit in units]), embedder.fingerprint

    async def finish(
        self, work: Work, units: Sequence[Unit], start: int, covered: int, due: float | None, history: int
    ) -> list[int]:
        """Store what a window gave and go on to the next one, in one transaction; return the ids of new memories.

        Args:
            start: number of the turn at which the next window begins. covered: number behind the last turn read.
            due: in how many seconds the work goes on; None: it is done. history: turns before `start` that are kept.
        """
        now = self.clock()

        def store() -> list[int]:
            vectors, embedder = self.embedded(units) if units else (np.zeros((0, 0), np.float32), "")
            with self.file.changing() as db:
                at = None if due is None else now + due
                if not turns.advance(db, work, start, covered, at, start - history):
                    return []
                made = rows.add(db, work.owner, units, vectors, embedder, now)
                self._limit(db, work.owner)
                return made

        return await self.run(store)

    async def expire(self) -> None:
        """Forget what is older than the configured age, of all owners."""
        if self.config.max_days is None or not self.file.there:
            return

        def work() -> None:
            oldest = self.clock() - (self.config.max_days or 0) * DAY
            with self.file.reading() as db:
                found = rows.expiring(db, oldest)
            if not found:
                return
            with self.file.changing() as db:
                for owner in found:
                    self._limit(db, owner)
            self.file.purge()

        await self.run(work)

    def _limit(self, db: Any, owner: int) -> None:
        days = self.config.max_days
        rows.limit(db, owner, self.config.max_memories, None if days is None else self.clock() - days * DAY)

    def index(self, name: str) -> Index:
        """Return the memories of an owner as they are now, ready for searches. Blocks."""
        select = f"SELECT {rows.COLUMNS}, embedder, vector FROM memories WHERE owner = ? ORDER BY id"
        return self.hold(name, EMPTY, select, self._indexed)

    def _indexed(self, read: Rows) -> Index:
        if not read:
            return EMPTY
        memories = [rows.memory(row[:4]) for row in read]

        def embed(places: Sequence[int]) -> Vectors:
            return self.embedder().embed([memories[i].unit.content for i in places])

        return Index(memories, self.vectors("memories", read, embed))


EMPTY = Index((), np.zeros((0, 1), np.float32))


class OwnMemories:
    """The memories of one owner. No method sees or changes another's."""

    def __init__(self, all_: Memories, name: str) -> None:
        self._all, self.name = all_, name

    async def index(self) -> Index:
        """Return what there is now, ready for searches."""
        return await self._all.run(self._all.index, self.name)

    async def add(self, units: Sequence[Unit]) -> list[int]:
        """Remember units; return the ids of those that are new.

        Raises:
            RetrievalError: they cannot be written, or the embedder cannot be loaded.
        """

        def work() -> list[int]:
            vectors, embedder = self._all.embedded(units)
            with self._all.file.changing() as db:
                owner = made_owner(db, self.name)
                made = rows.add(db, owner, units, vectors, embedder, self._all.clock())
                self._all._limit(db, owner)
                return made

        return await self._all.run(work) if units else []

    async def question(self, text: str) -> Vectors:
        """Return the unit vector of a question."""
        return await self._all.question(text)

    async def merge(self, abstract: Unit, ids: Sequence[int]) -> int | None:
        """Remember an abstract and archive what it stands for, all of which must still be there; return its id, or None
        where something was forgotten meanwhile."""

        def work() -> int | None:
            vectors, embedder = self._all.embedded([abstract])
            with self._all.file.changing() as db:
                owner = owner_of(db, self.name)
                if owner is None:
                    return None
                marks = ",".join("?" * len(ids))
                statement = f"SELECT count(*) FROM memories WHERE owner = ? AND archived_by IS NULL AND id IN ({marks})"
                if db.execute(statement, (owner, *ids)).fetchone()[0] != len(ids):
                    return None
                made = rows.add(db, owner, [abstract], vectors, embedder, self._all.clock())
                if not made:
                    return None
                rows.archive(db, owner, ids, made[0])
                return made[0]

        return await self._all.run(work)

    async def say(
        self, said: Sequence[Turn], settings: Mapping[str, Any], window: int, idle: float, name: str | None = None
    ) -> int:
        """Keep the new turns of a conversation, to be made memories of in the background; return how many there are.

        Args:
            settings: how, for whoever claims the work. window: turns of a window; as many are due at once.
            idle: seconds after the last turn until a shorter rest is due. name: of the conversation, if it has one.
        """

        return await self._all.say(self.name, said, settings, window, idle, name)

    async def novelties(self, most: int) -> list[tuple[float, float | None]]:
        """Return the novelty of the last windows, and their surprisal (nats a token) where it was measured."""

        def work() -> list[tuple[float, float | None]]:
            with self._all.file.reading() as db:
                owner = owner_of(db, self.name)
                return db.execute(
                    "SELECT novelty, surprisal FROM scores WHERE owner = ? ORDER BY created DESC LIMIT ?", (owner, most)
                ).fetchall()

        return await self._all.run(work) if self._all.file.there else []

    async def score(self, novelty: float, surprisal: float | None, most: int) -> None:
        """Keep the scores of a window, of the last `most` ones."""

        def work() -> None:
            with self._all.file.changing() as db:
                owner = owner_of(db, self.name)
                if owner is None:
                    return
                db.execute("INSERT INTO scores VALUES (?, ?, ?, ?)", (owner, self._all.clock(), novelty, surprisal))
                db.execute(
                    "DELETE FROM scores WHERE owner = ? AND created < (SELECT min(created) FROM (SELECT created FROM "
                    "scores WHERE owner = ? ORDER BY created DESC LIMIT ?))",
                    (owner, owner, most),
                )

        await self._all.run(work)

    async def page(self, span: Span = ALWAYS, after_id: int = 0, most: int = -1) -> list[Memory]:
        """Return memories in the order of their ids, archived ones included."""
        return await self._all.run(
            self._all.read, self.name, lambda db, owner: rows.listed(db, owner, span, after_id, most), []
        )

    async def waiting(self, span: Span = ALWAYS) -> list[dict[str, object]]:
        """Return the turns whose text is still kept."""
        return await self._all.run(self._all.read, self.name, lambda db, owner: turns.waiting(db, owner, span), [])

    async def erase(self, span: Span = ALWAYS) -> int:
        """Erase what was remembered in a stretch of time, from the file too; return how many memories there were."""
        return await self._all.run(self._erase, lambda db, owner: rows.erase(db, owner, span))

    async def forget(self, memory: int) -> bool:
        """Erase one memory and the abstracts made of it; return whether there was one."""

        def work(db: Any, owner: int) -> int:
            row = db.execute("SELECT 1 FROM memories WHERE owner = ? AND id = ?", (owner, memory)).fetchone()
            return 0 if row is None else rows.remove(db, owner, [memory])

        return await self._all.run(self._erase, work) > 0

    def _erase(self, work: Callable[[Any, int], int]) -> int:
        if not self._all.file.there:
            return 0
        with self._all.file.changing() as db:
            owner = owner_of(db, self.name)
            count = 0 if owner is None else work(db, owner)
        self._all.forget_held(self.name)
        if owner is not None:
            self._all.file.purge()
        return count
