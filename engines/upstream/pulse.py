"""Whether an upstream is there: looked after only when there is reason to doubt it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two looks: doubled each time, and up to half of it left out by chance."""


class Pulse:
    """`alive` until a look finds nobody, and again once one finds somebody. `answers` looks."""

    def __init__(self, answers: Callable[[], Awaitable[bool]]) -> None:
        self.alive = True
        self._answers = answers
        self._watch: asyncio.Task[None] | None = None

    def doubt(self) -> None:
        """Something went wrong: look, and keep looking until somebody answers."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())

    async def _look(self) -> None:
        pause = FIRST_PAUSE
        while not await self._answers():
            self.alive = False
            await asyncio.sleep(pause * (1 - random.random() / 2))
            pause = min(2 * pause, LONGEST_PAUSE)
        self.alive = True

    async def aclose(self) -> None:
        self.alive = False
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
