"""Give memory back to the system after work that needed much of it."""

from __future__ import annotations

import asyncio
import ctypes
from contextlib import suppress

LATER = 1.0
"""Seconds after the work: what it held is free by then, and several that end together are one."""


def trim() -> None:
    """Return what is free in the C library's heaps to the system, where it can do that (glibc). Blocks its thread for
    some milliseconds, without the interpreter's lock."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Trimmer:
    """Calls `trim` a while after it was asked to, once for all that ask meanwhile."""

    def __init__(self) -> None:
        self._due: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Have memory given back soon."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(LATER, self._begin)

    def _begin(self) -> None:
        self._due = None
        asyncio.get_running_loop().run_in_executor(None, trim)
