"""Server-sent events: `data:` lines only, comments to keep a connection alive, and an eye on the client.

Neither `id:` nor `event:` is sent, nothing is compressed, and headers leave before the first event.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.disconnect import disconnected

DONE = "[DONE]"


class EventStream(Response):
    """Sends each object as one line of JSON, then `[DONE]`. A client that leaves ends it, and closes the generator."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[dict[str, Any], None], headers: Mapping[str, str], keepalive: float
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._keepalive = keepalive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.wait({sending, leaving})
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        following: asyncio.Future[dict[str, Any]] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(self._events))
                while not (await asyncio.wait({following}, timeout=self._keepalive))[0]:
                    await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
                try:
                    event = following.result()
                except StopAsyncIteration:
                    break
                await send({"type": "http.response.body", "body": line(dump(event)), "more_body": True})
            await send({"type": "http.response.body", "body": line(DONE), "more_body": False})
        finally:
            if following and not following.done():
                following.cancel()
                await asyncio.wait({following})
            await self._events.aclose()


def line(data: str) -> bytes:
    # Some clients split lines at these too; inside of JSON they only occur in strings, where an escape is the same.
    for separator in ("\x85", "\u2028", "\u2029"):
        data = data.replace(separator, f"\\u{ord(separator):04x}")
    return f"data: {data}\n\n".encode()


def dump(content: Any) -> str:
    """JSON on one line."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
