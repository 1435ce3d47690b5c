"""Remember conversations that wait in a store, one after the other, beside all requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from pydantic import ValidationError

from waver.engines.base import EngineError, Unsupported
from waver.retrieval.base import RetrievalError
from waver.retrieval.memory.queue import QueuedStore
from waver.retrieval.memory.turns import Work

log = structlog.get_logger("waver")

PAUSE = 30.0
"""Seconds between two looks for work that nobody announced: of another process, or whose time has come."""
RETRY = 30.0
"""Seconds until work is tried again, doubled with every try."""


async def drain(store: QueuedStore[Any], step: Callable[[], Awaitable[bool]]) -> None:
    """Call `step` for as long as it finds work that is due, again and again, until cancelled."""
    while True:
        await store.expire()
        while await step():
            pass
        due = await store.next_due()
        await store.idle(PAUSE if due is None else min(due + 0.01, PAUSE))


async def attempt(store: QueuedStore[Any], read: Callable[[Work], Awaitable[None]]) -> bool:
    """Let `read` do one piece of work, if one is due; return whether one was. Work that fails is tried again later."""
    claimed = await store.claim()
    if claimed is None:
        return False
    try:
        await read(claimed)
    except asyncio.CancelledError:
        await store.postpone(claimed, 0.0)
        raise
    except (RetrievalError, EngineError, Unsupported, ValidationError) as error:
        # Nothing that was said reaches the log.
        log.warning("a conversation could not be remembered yet", kind=type(error).__name__, tries=claimed.tries + 1)
        await store.postpone(claimed, RETRY * 2**claimed.tries)
    return True
