"""Cancel work in a thread until it commits; from then on a cancellation has no effect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

Result = TypeVar("Result")


class Cancelled(Exception):
    """The work was cancelled: its result is no longer needed."""


class CancelToken:
    """A token that decides once whether work commits or is cancelled. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = self._committing = False

    def cancel(self) -> bool:
        """Cancel the work unless it is committing already; return whether it is cancelled."""
        with self._lock:
            self._cancelled = not self._committing
            return self._cancelled

    def check(self) -> None:
        """Stop if the work was cancelled.

        Raises:
            Cancelled: the work should stop.
        """
        if self._cancelled:
            raise Cancelled

    def commit(self) -> None:
        """Enter the commit: from now on `cancel` has no effect.

        Raises:
            Cancelled: it came before.
        """
        with self._lock:
            self.check()
            self._committing = True


async def in_thread(threads: Executor, work: Callable[..., Result], *arguments: object) -> Result:
    """Run `work` in a thread. If the caller is cancelled, wait until the work has ended, unless it had not started."""
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
