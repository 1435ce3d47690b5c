"""Limit connections: the time for a request's head, the idle time, and their number."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from typing import Any

import h11
import structlog
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from waver.server.errors import APIError

log = structlog.get_logger("waver")

QUIET_SECONDS = 10.0
"""One log line at most in so many seconds, however many connections are turned away."""
OWN_FILES = 64
"""Open files at least, of those that the process may have, that are not for connections: models, collections, pipes."""
BACKLOG = 2048


def connection_limits(wanted: int) -> tuple[int, int]:
    """Return how many connections the open-file limit allows, at most `wanted`, and the listen backlog."""
    try:
        import resource
    except ImportError:  # Windows
        return wanted, BACKLOG
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return wanted, BACKLOG
    own = max(OWN_FILES, files // 4)
    return min(wanted, max(16, files - own)), max(16, min(BACKLOG, own // 2))


class Connections:
    """Limits on a server's connections, and the connections that wait for a request, the longest waiting first."""

    def __init__(self, most: int, header_timeout: float, write_timeout: float = 30.0) -> None:
        self.most, self.header_timeout, self.write_timeout = most, header_timeout, write_timeout
        self.waiting: dict[Protocol, None] = {}
        self._turned_away, self._logged = 0, -QUIET_SECONDS

    @property
    def protocol(self) -> Any:
        """Return the protocol factory that uvicorn calls for each connection."""
        return partial(Protocol, bounds=self)

    def make_room(self, now: float) -> bool:
        """Close the connection that has waited longest for a request; return whether there was one."""
        victim = next(iter(self.waiting), None)
        if victim is not None:
            victim.close()
        self._turned_away += 1
        if now - self._logged >= QUIET_SECONDS:
            log.warning("connections are at their limit", most=self.most, turned_away=self._turned_away)
            self._turned_away, self._logged = 0, now
        return victim is not None


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, with OpenAI error objects for malformed requests, and within the limits of
    `Connections`."""

    def __init__(self, *arguments: Any, bounds: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounds = bounds
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.most and not self._bounds.make_room(self.loop.time()):
            self.app = _full
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._cease()
        self._read_again()

    def pause_writing(self) -> None:
        """Abort the connection of a client that reads nothing for `write_timeout`: unread data is kept in memory."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._bounds.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_again()

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cease()
        else:
            self._wait()  # also for what is left of a body that nobody reads

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self.conn.trailing_data[0]:
            self._wait()
        else:
            self._bounds.waiting[self] = None  # uvicorn's own timer ends it

    def close(self) -> None:
        """Close the connection without a response."""
        self._cease()
        self.transport.close()

    def _wait(self) -> None:
        """Start the timer for a request's head; further bytes of it do not extend the deadline."""
        if self._deadline is None and not self.transport.is_closing():
            self._bounds.waiting[self] = None
            self._deadline = self.loop.call_later(self._bounds.header_timeout, self._late)

    def _cease(self) -> None:
        self._bounds.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._cease()
        if self.conn.trailing_data[0] and self.conn.their_state is h11.IDLE:
            seconds = self._bounds.header_timeout
            self._answer(APIError(408, f"The headers did not arrive within {seconds:g} s.", code="headers_timeout"))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]
        large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        self._answer(APIError(431, "The headers are too large.") if large else APIError(400, msg))
        self.transport.close()

    def _answer(self, answer: APIError) -> None:
        content = json.dumps(answer.body).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(content))),
            ("connection", "close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events = (h11.Response(status_code=answer.status, headers=headers), h11.Data(content), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 503: every connection has a request running."""
    headers = {"retry-after": "1", "connection": "close"}
    error = APIError(503, "The server has all the connections that it can have.", code="too_many", headers=headers)
    await error.response()(scope, receive, send)
