"""Admit a bounded number of requests, queue a bounded number behind them, and refuse the rest with 429."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from waver.server.errors import APIError


class Admission:
    """A limiter: at most `running` requests are decoded at a time, and at most `waiting` are queued, first in, first
    out."""

    def __init__(self, running: int, waiting: int) -> None:
        self._room = asyncio.Semaphore(running)
        self._most_waiting = waiting
        self.running = 0
        self.waiting = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot while a request is decoded.

        Raises:
            APIError: 429, the queue is full.
        """
        if self._room.locked() and self.waiting >= self._most_waiting:
            message = f"{self.running} requests are running and {self.waiting} waiting, which is all there is room for."
            raise APIError(429, message, code="queue_full", headers={"retry-after": "1"})
        self.waiting += 1
        try:
            await self._room.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._room.release()
