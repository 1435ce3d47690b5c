"""Cancel work in a thread up to the moment at which it commits, and never after."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

Result = TypeVar("Result")


class Cancelled(Exception):
    """The work was cancelled: nobody waits for its result any more."""


class CancelToken:
    """Decides once whether a piece of work commits or is cancelled. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = self._committing = False

    def cancel(self) -> bool:
        """Cancel the work unless it commits already; whether it is cancelled."""
        with self._lock:
            self._cancelled = not self._committing
            return self._cancelled

    def check(self) -> None:
        """Raises:
        Cancelled: the work should stop."""
        if self._cancelled:
            raise Cancelled

    def commit(self) -> None:
        """From now on `cancel` comes too late.

        Raises:
            Cancelled: it came before.
        """
        with self._lock:
            self.check()
            self._committing = True


async def in_thread(threads: Executor, work: Callable[..., Result], *arguments: object) -> Result:
    """Run `work` in a thread. A caller that is cancelled is held until it has ended, unless it never began."""
    running = threads.submit(work, *arguments)
    waiting = asyncio.wrap_future(running)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        if not running.cancel():
            await asyncio.wait({waiting})
        if waiting.done() and not waiting.cancelled():
            waiting.exception()  # seen: nobody else will ask
        raise
