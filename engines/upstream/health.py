"""Check whether an upstream answers, after a failure and until it does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two checks: doubled each time, less a random part of up to a half."""


class HealthCheck:
    """`alive` until a check fails, and again once one succeeds. `is_up` checks."""

    def __init__(self, is_up: Callable[[], Awaitable[bool]]) -> None:
        self.alive = True
        self._is_up = is_up
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to check, after a failure, until the upstream answers."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while not await self._is_up():
            self.alive = False
            await asyncio.sleep(pause * (1 - random.random() / 2))
            pause = min(2 * pause, LONGEST_PAUSE)
        self.alive = True

    async def aclose(self) -> None:
        self.alive = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
