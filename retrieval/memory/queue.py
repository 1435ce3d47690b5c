"""Keep conversations of owners until they have been remembered: the base of the stores of memories and of episodes.

Their file has the tables of `waver.retrieval.memory.turns.QUEUE`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from waver.retrieval.embedder import Embedder
from waver.retrieval.memory import turns
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.database import Layout
from waver.retrieval.memory.owned import OwnedStore, made_owner
from waver.retrieval.memory.turns import Turn, Work

Kept = TypeVar("Kept")


class QueuedStore(OwnedStore[Kept]):
    """A store whose entries are made in the background, of conversations that wait in its file."""

    history: ClassVar[int] = 256
    """Most turns before a window that are handed to whoever reads it."""

    def __init__(
        self,
        path: Path,
        layout: Layout,
        config: MemoryConfig,
        embedder: Callable[[], Embedder],
        threads: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up; nothing is read or written yet.

        Args:
            embedder: returns what makes the vectors. clock: seconds since 1970.
        """
        super().__init__(path, layout, config.lock_seconds, embedder, threads, clock)
        self.config = config
        self.arrived = asyncio.Event()
        """Set when work has come that is due."""

    async def say(
        self, owner: str, said: Sequence[Turn], settings: Mapping[str, Any], window: int, idle: float, name: str | None
    ) -> int:
        """Keep the new turns of an owner's conversation, to be remembered in the background; return how many there are.

        Args:
            settings: how, for whoever claims the work. window: turns of a window; as many are due at once.
            idle: seconds after the last turn until a shorter rest is due. name: of the conversation, if it has one.
        """

        def work() -> tuple[int, bool]:
            now = self.clock()
            with self.file.changing() as db:
                number = made_owner(db, owner)
                thread, new = turns.append(db, number, said, name, now, self.config.max_turns)
                full = turns.unread(db, thread)[1] >= window
                if new:
                    turns.schedule(db, number, thread, now if full else now + idle, settings)
                return new, bool(new) and (full or idle <= 0)

        new, due = await self.run(work)
        if due:
            self.arrived.set()
        return new

    async def expire(self) -> None:
        """Forget what is older than the configured age, of all owners."""
        raise NotImplementedError

    async def claim(self) -> Work | None:
        """Take work that is due, if there is any; it comes again unless it is finished in time."""

        def work() -> Work | None:
            if not self.file.there:
                return None
            with self.file.changing() as db:
                return turns.claim(db, self.clock(), self.history)

        return await self.run(work)

    async def next_due(self) -> float | None:
        """Return in how many seconds work is due; None where there is none."""

        def work() -> float | None:
            if not self.file.there:
                return None
            with self.file.reading() as db:
                due = turns.next_due(db)
            return None if due is None else max(due - self.clock(), 0.0)

        return await self.run(work)

    async def postpone(self, work: Work, seconds: float) -> None:
        """Try work again in a while."""

        def later() -> None:
            with self.file.changing() as db:
                turns.postpone(db, work, self.clock() + seconds)

        await self.run(later)

    async def idle(self, seconds: float) -> None:
        """Wait until work arrives, for at most so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self.arrived.wait()
        except TimeoutError:
            pass
        self.arrived.clear()
