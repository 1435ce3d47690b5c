"""Detect a client that disconnects, also before anything was sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

T = TypeVar("T")


CLIENT_GONE = 499
"""The status of a request whose client has left: for logs and metrics, as nobody reads it."""


class ClientGone(Exception):
    """The client closed its connection before it was answered."""


async def disconnected(receive: Receive) -> None:
    """Return when the client has left. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as long as the client is there.

    Raises:
        ClientGone: it left; the work was cancelled and has ended.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})
    if working.cancelled():
        raise ClientGone
    return working.result()
