"""Limit the requests that an upstream gets at once, and order those that wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class ConcurrencyLimiter:
    """Admit `limit` requests at once. Of those that wait, the ones that continue an answer come before those that begin
    one, so that new answers do not starve the ones that have begun."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: tuple[deque[asyncio.Future[None]], deque[asyncio.Future[None]]] = (deque(), deque())

    @asynccontextmanager
    async def admitted(self, begun: bool) -> AsyncGenerator[None, None]:
        """Wait to be admitted, and stay so inside of the context. `begun`: the answer has tokens already."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting[0 if begun else 1].append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release()  # admitted at the very moment of the cancellation
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        for queue in self._waiting:
            while queue:
                if not (turn := queue.popleft()).done():
                    return turn.set_result(None)
        self._free += 1
        return None
