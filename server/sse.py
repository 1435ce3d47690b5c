"""Send server-sent events: `data:` lines, and comments that keep the connection alive; stop when the client
disconnects.

No `id:` is sent, `event:` only in protocols that want it, nothing is compressed, and headers leave before the first
event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from waver.server.disconnect import disconnected

SEPARATORS = {each.encode(): f"\\u{ord(each):04x}".encode() for each in ("\x85", "\u2028", "\u2029")}
"""Characters at which some clients split lines too; inside of JSON they only occur in strings, where an escape is the
same."""


STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""Entry of a route's description for its streams."""


class EventStream(Response):
    """A response of events, each one line of JSON, followed by `[DONE]`. Events that are ready together go out in one
    write. A client that disconnects ends it and closes the generator. `keepalive`: seconds of silence after which a
    comment is sent."""

    media_type = "text/event-stream"
    end = b"data: [DONE]\n\n"

    def __init__(
        self, events: AsyncGenerator[Sequence[Mapping[str, Any]], None], headers: Mapping[str, str], keepalive: float
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._keepalive = keepalive
        self._silent_until = 0.0

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
        keeping = asyncio.create_task(self._keep_alive(send))
        try:
            async for events in self._events:
                await self._write(send, self._lines(events))
            keeping.cancel()  # nothing may follow the last line
            await send({"type": "http.response.body", "body": self.end, "more_body": False})
        finally:
            keeping.cancel()
            await self._events.aclose()
            await asyncio.wait({keeping})

    def _lines(self, events: Sequence[Mapping[str, Any]]) -> bytes:
        return lines(*map(dump, events))

    async def _write(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._silent_until = asyncio.get_running_loop().time() + self._keepalive

    async def _keep_alive(self, send: Send) -> None:
        # One timer that looks again when it is due: cheaper than one that is set anew with every event.
        clock = asyncio.get_running_loop().time
        self._silent_until = clock() + self._keepalive
        while True:
            await asyncio.sleep(self._silent_until - clock())
            if clock() >= self._silent_until:
                await self._write(send, b": keep-alive\n\n")


class NamedEventStream(EventStream):
    """A stream whose events have their `type` as their name, and which ends with the last of them."""

    end = b""

    def _lines(self, events: Sequence[Mapping[str, Any]]) -> bytes:
        return b"".join(b"event: %b\n%b" % (event["type"].encode(), lines(dump(event))) for event in events)


def dump(value: Any) -> bytes:
    """Serialise to one line of JSON; NaN and infinities become null."""
    return to_json(value, inf_nan_mode="null")


def lines(*data: bytes) -> bytes:
    body = b"".join(b"data: %b\n\n" % each for each in data)
    if not body.isascii():
        for separator, escape in SEPARATORS.items():
            body = body.replace(separator, escape)
    return body
