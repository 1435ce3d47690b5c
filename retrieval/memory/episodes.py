"""Store episodes of owners at four grains, with the links among them (MemGAS, arXiv 2505.19549).

An episode that goes on is written again under its id: its own links are made anew, against all others that are there;
those that later episodes have made to it stay.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from waver.retrieval.base import Vectors
from waver.retrieval.embedder import Embedder
from waver.retrieval.memory import graph, turns
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.database import Layout
from waver.retrieval.memory.episode import GRAINS, Episode, Kept, grains
from waver.retrieval.memory.owned import OWNERS, Rows, changed, made_owner, owner_of
from waver.retrieval.memory.queue import QueuedStore
from waver.retrieval.memory.span import ALWAYS, Span
from waver.retrieval.memory.turns import Turn, Work, digests

FILE = "episodes.sqlite3"
LAYOUT = Layout(
    mark=0x57455049,  # "WEPI"
    version=1,
    name="episodes",
    schema=OWNERS
    + turns.QUEUE
    + """
CREATE TABLE episodes (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL, thread INTEGER,
    digest TEXT NOT NULL, data TEXT NOT NULL, links TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    embedder TEXT NOT NULL, vector BLOB NOT NULL);
CREATE INDEX episodes_owner ON episodes (owner, digest);
CREATE INDEX episodes_thread ON episodes (thread)""",
)
COLUMNS = "id, created, updated, data, links"
THREADS = 2
DAY = 86_400.0


@dataclass(frozen=True)
class Linking:
    """Options of linking nodes: the mixture is fitted to the `candidates` largest similarities; `wide` is a guard
    of ours (`graph.accepted`)."""

    candidates: int = 30
    wide: bool = False


class EpisodeIndex:
    """The episodes of an owner with their vectors `[episodes, 4, dimension]`, as they were at one generation."""

    def __init__(self, episodes: Sequence[Kept], vectors: Vectors) -> None:
        self.episodes, self.vectors = tuple(episodes), vectors

    @cached_property
    def links(self) -> graph.Links:
        """Return the linked nodes `[links, 2]`; the node of a grain of the episode at a place is 4 * place + grain."""
        places = {each.id: i for i, each in enumerate(self.episodes)}
        pairs = [
            (len(GRAINS) * i + own, len(GRAINS) * places[other] + grain)
            for i, each in enumerate(self.episodes)
            for own, other, grain in each.links
            if other in places
        ]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def linked(self, new: Vectors, linking: Linking) -> list[tuple[int, int, int]]:
        """Return the links of a new episode with the vectors `[4, dimension]`: own grain, episode, grain."""
        if not self.episodes:
            return []
        nodes = self.vectors.reshape(-1, self.vectors.shape[-1]).astype(np.float64)
        return [
            (own, self.episodes[node // len(GRAINS)].id, node % len(GRAINS))
            for own in range(len(GRAINS))
            if new[own].any()  # a grain without a text is like nothing
            for node in graph.neighbours(new[own].astype(np.float64), nodes, linking.candidates, linking.wide)
        ]

    def without(self, episode: int | None) -> EpisodeIndex:
        """Return the index of all others than one."""
        keep = [i for i, each in enumerate(self.episodes) if each.id != episode]
        if len(keep) == len(self.episodes):
            return self
        return EpisodeIndex([self.episodes[i] for i in keep], self.vectors[keep])


EMPTY = EpisodeIndex((), np.zeros((0, len(GRAINS), 1), np.float32))


class Episodes(QueuedStore[EpisodeIndex]):
    """The episodes of all owners in one folder."""

    history = 0

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
        super().__init__(folder / FILE, LAYOUT, config, embedder, THREADS, clock)

    def of(self, owner: str) -> OwnEpisodes:
        """Return the episodes of one owner."""
        return OwnEpisodes(self, owner)

    async def finish(self, work: Work, before: Kept | None, episode: Episode, linking: Linking) -> int | None:
        """Store what a conversation has become, in one transaction; return its id, or None where something of it was
        erased meanwhile.

        Args:
            before: what was stored of it. linking: how it is linked.
        """
        end = work.numbers[-1] + 1 if work.numbers else work.next

        def store() -> int | None:
            vectors, embedder = self.embedded([episode])
            links = self.index(work.owner_name).without(None if before is None else before.id)
            made = links.linked(vectors[0], linking)
            with self.file.changing() as db:
                if not turns.advance(db, work, end, end, None, end):
                    return None
                now, number = self.clock(), None if before is None else before.id
                row = (episode.digest, _data(episode), json.dumps(made), now, embedder, vectors[0].tobytes())
                if number is not None:
                    done = db.execute(
                        "UPDATE episodes SET digest = ?, data = ?, links = ?, updated = ?, embedder = ?, vector = ? "
                        "WHERE id = ?",
                        (*row, number),
                    )
                    if not done.rowcount:
                        return None
                else:
                    number = _insert(db, work.owner, work.thread, row)
                changed(db, work.owner)
                self._limit(db, work.owner)
                return number

        return await self.run(store)

    async def skip(self, work: Work) -> None:
        """Finish work in which there is nothing to remember."""
        end = work.numbers[-1] + 1 if work.numbers else work.next

        def store() -> None:
            with self.file.changing() as db:
                turns.advance(db, work, end, end, None, end)

        await self.run(store)

    async def expire(self) -> None:
        days = self.config.max_days
        if days is None or not self.file.there:
            return
        oldest = self.clock() - days * DAY

        def work() -> None:
            with self.file.reading() as db:
                found = {
                    row[0]
                    for table, column in (("episodes", "updated"), ("turns", "created"))
                    for row in db.execute(f"SELECT DISTINCT owner FROM {table} WHERE {column} < ?", (oldest,))
                }
            if not found:
                return
            with self.file.changing() as db:
                for owner in found:
                    self._limit(db, owner)
            self.file.purge()

        await self.run(work)

    def _limit(self, db: sqlite3.Connection, owner: int) -> None:
        """Forget what is too old, and beyond the configured number the oldest episodes."""
        days, count = self.config.max_days, 0
        if days is not None:
            oldest = self.clock() - days * DAY
            count = db.execute("DELETE FROM episodes WHERE owner = ? AND updated < ?", (owner, oldest)).rowcount
            db.execute("DELETE FROM turns WHERE owner = ? AND created < ?", (owner, oldest))
        count += db.execute(
            "DELETE FROM episodes WHERE id IN (SELECT id FROM episodes WHERE owner = ? ORDER BY updated DESC, id DESC "
            "LIMIT -1 OFFSET ?)",
            (owner, self.config.max_episodes),
        ).rowcount
        if count:
            changed(db, owner)

    def embedded(self, episodes: Sequence[Episode]) -> tuple[Vectors, str]:
        """Return the vectors of episodes `[episodes, 4, dimension]` and the fingerprint of the weights. Blocks."""
        embedder = self.embedder()
        return grains(episodes, embedder.embed), embedder.fingerprint

    def index(self, name: str) -> EpisodeIndex:
        """Return the episodes of an owner as they are now, ready for searches. Blocks."""
        select = f"SELECT {COLUMNS}, embedder, vector FROM episodes WHERE owner = ? ORDER BY id"
        return self.hold(name, EMPTY, select, self._indexed)

    def _indexed(self, read: Rows) -> EpisodeIndex:
        if not read:
            return EMPTY
        kept = [_kept(row) for row in read]

        def embed(places: Sequence[int]) -> Vectors:
            return self.embedded([kept[i].episode for i in places])[0].reshape(len(places), -1)

        return EpisodeIndex(
            kept, self.vectors("episodes", read, embed, len(GRAINS)).reshape(len(kept), len(GRAINS), -1)
        )


class OwnEpisodes:
    """The episodes of one owner. No method sees or changes another's."""

    def __init__(self, all_: Episodes, name: str) -> None:
        self._all, self.name = all_, name

    async def index(self) -> EpisodeIndex:
        """Return what there is now, ready for searches."""
        return await self._all.run(self._all.index, self.name)

    async def question(self, text: str) -> Vectors:
        """Return the unit vector of a question."""
        return await self._all.run(lambda: self._all.embedder().question(text))

    async def say(self, said: Sequence[Turn], settings: Any, idle: float, name: str | None = None) -> int:
        """Keep the new turns of a conversation, to be read in the background once it has been idle for so many seconds;
        return how many there are. `name` is that of the conversation, if it has one."""
        return await self._all.say(self.name, said, settings, self._all.config.max_turns, idle, name)

    async def add(self, episodes: Sequence[Episode], linking: Linking) -> list[int]:
        """Store episodes that are whole, in their order; return the ids of those that are new: what has the same words
        as one that is there is left out."""

        def work() -> list[int]:
            made = []
            for episode in episodes:
                vectors, embedder = self._all.embedded([episode])
                links = json.dumps(self._all.index(self.name).linked(vectors[0], linking))
                with self._all.file.changing() as db:
                    owner = made_owner(db, self.name)
                    known = "SELECT 1 FROM episodes WHERE owner = ? AND digest = ?"
                    if db.execute(known, (owner, episode.digest)).fetchone() is not None:
                        continue
                    row = (episode.digest, _data(episode), links, self._all.clock(), embedder, vectors[0].tobytes())
                    made.append(_insert(db, owner, None, row))
                    changed(db, owner)
                    self._all._limit(db, owner)
            return made

        return await self._all.run(work)

    async def of_thread(self, thread: int) -> Kept | None:
        """Return the last episode of a conversation, by the number of its thread."""

        def work(db: sqlite3.Connection, owner: int) -> Kept | None:
            statement = f"SELECT {COLUMNS} FROM episodes WHERE owner = ? AND thread = ? ORDER BY id DESC LIMIT 1"
            row = db.execute(statement, (owner, thread)).fetchone()
            return None if row is None else _kept(row)

        return await self._all.run(self._all.read, self.name, work, None)

    async def running(self, said: Sequence[Turn]) -> int | None:
        """Return the id of the episode that a conversation goes on from, if it is stored."""

        def work(db: sqlite3.Connection, owner: int) -> int | None:
            thread = "SELECT thread FROM turns WHERE owner = ? AND digest = ?"
            statement = f"SELECT max(id) FROM episodes WHERE thread = ({thread})"
            for digest in reversed(digests(said)[1:]):  # conversations may well begin with the same words
                if (found := db.execute(statement, (owner, digest)).fetchone()[0]) is not None:
                    return int(found)
            return None

        return await self._all.run(self._all.read, self.name, work, None)

    async def page(self, span: Span = ALWAYS, after_id: int = 0, most: int = -1) -> list[Kept]:
        """Return episodes in the order of their ids, those that were written in a stretch of time."""

        def work(db: sqlite3.Connection, owner: int) -> list[Kept]:
            where, values = _meeting(span)
            statement = f"SELECT {COLUMNS} FROM episodes WHERE owner = ? AND id > ?{where} ORDER BY id LIMIT ?"
            return [_kept(row) for row in db.execute(statement, (owner, after_id, *values, most))]

        return await self._all.run(self._all.read, self.name, work, [])

    async def waiting(self, span: Span = ALWAYS) -> list[dict[str, object]]:
        """Return the turns that are not yet in an episode."""
        return await self._all.run(self._all.read, self.name, lambda db, owner: turns.waiting(db, owner, span), [])

    async def erase(self, span: Span = ALWAYS) -> int:
        """Erase the episodes that were written in a stretch of time, and the turns that wait; return how many episodes
        there were."""

        def work(db: sqlite3.Connection, owner: int) -> int:
            where, values = _meeting(span)
            count = db.execute(f"DELETE FROM episodes WHERE owner = ?{where}", (owner, *values)).rowcount
            turns.erase(db, owner, span)
            changed(db, owner)
            if span == ALWAYS:
                db.execute("DELETE FROM owners WHERE id = ?", (owner,))
            return count

        return await self._all.run(self._erase, work)

    async def forget(self, episode: int) -> bool:
        """Erase one episode, and what waits of its conversation; return whether there was one."""

        def work(db: sqlite3.Connection, owner: int) -> int:
            row = db.execute("SELECT thread FROM episodes WHERE owner = ? AND id = ?", (owner, episode)).fetchone()
            if row is None:
                return 0
            db.execute("DELETE FROM episodes WHERE id = ?", (episode,))
            db.execute("DELETE FROM turns WHERE thread = ?", (row[0],))
            db.execute("UPDATE work SET due = 0, erased = erased + 1 WHERE thread = ?", (row[0],))
            changed(db, owner)
            return 1

        return await self._all.run(self._erase, work) > 0

    def _erase(self, work: Callable[[sqlite3.Connection, int], int]) -> int:
        if not self._all.file.there:
            return 0
        with self._all.file.changing() as db:
            owner = owner_of(db, self.name)
            count = 0 if owner is None else work(db, owner)
        self._all.forget_held(self.name)
        if owner is not None:
            self._all.file.purge()
        return count


def _data(episode: Episode) -> str:
    return episode.model_dump_json(exclude_defaults=True)


def _insert(db: sqlite3.Connection, owner: int, thread: int | None, row: tuple[Any, ...]) -> int:
    digest, data, links, now, embedder, vector = row
    done = db.execute(
        "INSERT INTO episodes (owner, thread, digest, data, links, created, updated, embedder, vector) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (owner, thread, digest, data, links, now, now, embedder, vector),
    )
    return int(done.lastrowid or 0)


def _kept(row: Sequence[Any]) -> Kept:
    number, created, updated, data, links = row[:5]
    return Kept(
        id=number,
        created=datetime.fromtimestamp(created, UTC),
        updated=datetime.fromtimestamp(updated, UTC),
        episode=Episode.model_validate_json(data),
        links=tuple(tuple(each) for each in json.loads(links)),
    )


def _meeting(span: Span) -> tuple[str, list[float]]:
    """Return a condition for episodes of which something was written in a stretch of time."""
    parts, values = "", []
    if span.after is not None:
        parts, values = " AND updated >= ?", [span.after]
    if span.before is not None:
        parts, values = parts + " AND created < ?", [*values, span.before]
    return parts, values
