"""How many requests an upstream gets at once, and who is next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Turnstile:
    """Lets `places` in at once. Who goes on with an answer comes before who begins one, so that an answer that has
    begun is not starved by new ones."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: tuple[deque[asyncio.Future[None]], deque[asyncio.Future[None]]] = (deque(), deque())

    @asynccontextmanager
    async def place(self, begun: bool) -> AsyncGenerator[None, None]:
        """Wait for a place, and keep it inside of the context. `begun`: the answer has tokens already."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting[0 if begun else 1].append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave()  # let in at the very moment it gave up
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        for queue in self._waiting:
            while queue:
                if not (turn := queue.popleft()).done():
                    return turn.set_result(None)
        self._free += 1
        return None
