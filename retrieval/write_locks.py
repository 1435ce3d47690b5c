"""Lock collections for writing: one writer per collection, awaited on the event loop rather than in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar
from weakref import WeakValueDictionary

from waver.retrieval.base import Busy
from waver.retrieval.cancellation import in_thread

Result = TypeVar("Result")
POLL = 0.05
"""Seconds between two looks at a lock that another process holds."""


class WriteLocks:
    """Write locks of collections: coroutines of this process write to a collection one after the other."""

    def __init__(self, seconds: float) -> None:
        """Create without locks.

        Args:
            seconds: how long to wait for a turn, and for writers of other processes.
        """
        self._seconds = seconds
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def take(self, name: str, attempt: Callable[[], Result], threads: Executor) -> Result:
        """Hold a collection's lock while `attempt` runs in a thread, and repeat it while it raises `Busy`.

        Args:
            attempt: does the work if the collection's lock is free, and never waits for it.
            threads: where it runs. Nobody here waits in them for a lock, so all that is put there is done soon.

        Raises:
            Busy: others wrote for all the time.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._seconds
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout_at(until):
                await lock.acquire()
        except TimeoutError:
            raise busy(name) from None
        try:
            while True:
                try:
                    return await in_thread(threads, attempt)
                except Busy:
                    if loop.time() >= until:
                        raise
                await asyncio.sleep(POLL)
        finally:
            lock.release()


def busy(name: str) -> Busy:
    return Busy(f"Somebody else is writing to the collection '{name}'; try again later.")
