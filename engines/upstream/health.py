"""Check whether an upstream answers: from time to time, and at once after a failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two checks of an upstream that is down: doubled each time, less a random part of up to a half."""
MISSED = 2
"""Checks that have to fail in a row where no request did: one may meet an upstream that is busy for a moment."""


class HealthCheck:
    """`alive` until checks fail, and again once one succeeds.

    Args:
        is_up: checks. lost: called when the upstream turns out to be down, with the time of the loop's clock at which
            the first check that failed began. interval: seconds between checks; 0 to check only after a failure.
    """

    def __init__(self, is_up: Callable[[], Awaitable[bool]], lost: Callable[[float], None], interval: float) -> None:
        self.alive = True
        self._is_up, self._lost = is_up, lost
        self._interval = interval or None
        self._failed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Check from now on, in the running event loop."""
        if self._task is None or self._task.done() or self._task.get_loop() is not asyncio.get_running_loop():
            self._failed = asyncio.Event()
            self._task = asyncio.create_task(self._run())

    def check_now(self) -> None:
        """Check at once, after a failure, and until the upstream answers."""
        self.start()
        self._failed.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._failed.wait()
            needed = 1 if self._failed.is_set() else MISSED
            missed, pause, since = 0, FIRST_PAUSE, asyncio.get_running_loop().time()
            while not await self._is_up():
                missed += 1
                if missed >= needed and self.alive:
                    self.alive = False
                    self._lost(since)
                await asyncio.sleep(pause * (1 - random.random() / 2))
                pause = min(2 * pause, LONGEST_PAUSE)
            self.alive = True
            self._failed.clear()

    async def aclose(self) -> None:
        self.alive = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
