"""Let requests begin one after the other, so that many that come at once do not hold up what runs already."""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Paths that monitors ask for all the time: they wait for nobody, and are not logged."""


class Turns:
    """A queue for work of some milliseconds on the event loop: one caller goes on in each turn of the loop.

    Validating a request and making its prompt takes that long. Of a few hundred that arrive together, every stream and
    every health check would wait for the sum.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running = False

    async def wait(self) -> None:
        """Wait for the caller's turn; first in, first out."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        if not self._running:
            self._running = True
            loop.call_soon(self._next)
        await turn

    def _next(self) -> None:
        """Let the first one go on that still waits; called once in each turn of the loop while there are any."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else it was cancelled
                turn.set_result(None)
                break
        self._running = bool(self._waiting)
        if self._running:
            asyncio.get_running_loop().call_soon(self._next)


class TurnsMiddleware:
    """Middleware that lets one request in at a time, health checks and metrics at once."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in QUIET:
            await self._turns.wait()
        await self.app(scope, receive, send)
