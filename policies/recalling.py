"""Share among policies that quote from a store what they check, and what they find for all choices of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from waver.engines.base import Unsupported
from waver.policies.job import Job

T = TypeVar("T")


class Opened(Protocol):
    """A store that opens its files before it is read."""

    async def ready(self) -> None:
        """Open the store."""


async def check_quoting(job: Job, store: Opened | None, engine: str | None, kept: str, quoted: str = "") -> None:
    """Check that there is a store, and a question in front of which it can be quoted, and open it.

    Args:
        engine: the engine that a policy asks, if one is named. kept: what the store keeps. quoted: what of it is
            quoted, if that is called otherwise.

    Raises:
        Unsupported: one of them is missing.
    """
    if store is None:
        raise Unsupported(f"there are no {kept} here")
    if engine is not None and engine not in job.services.engines:
        known = ", ".join(job.services.engines)
        raise Unsupported(f"unknown engine {engine[:64]!r}; there are {known}", "engine")
    if job.question is None:
        what = quoted or kept
        raise Unsupported(f"{what} are quoted in front of a question: send a user's message, or a prompt as text")
    await store.ready()


async def once(job: Job, name: str, find: Callable[[], Awaitable[T]]) -> T:
    """Find something for a policy of this name; the other choices of the request wait for it and share it."""
    lock: asyncio.Lock = job.shared.setdefault(f"{name}.lock", asyncio.Lock())
    async with lock:
        if f"{name}.found" not in job.shared:
            job.shared[f"{name}.found"] = await find()
    found: T = job.shared[f"{name}.found"]
    return found
