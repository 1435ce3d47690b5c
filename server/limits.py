"""Limit requests: the size of their headers and body, and the time that the body takes to arrive."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waver.server.errors import NO_RETRY, APIError

DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0
UNCOUNTED = 64 * 2**10
"""Bytes of a body that is let in without asking for room."""
DOCUMENTS = re.compile(r"/v1/collections/[^/]+/documents")


class LimitsMiddleware:
    """Middleware that answers 413 to a large body, declared or streamed, 431 to large headers, and 408 to a body that
    does not arrive in time."""

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        max_documents: int,
        max_headers: int,
        body_timeout: float,
        max_total: int,
    ) -> None:
        """Set the limits, in bytes and seconds.

        `max_documents` bounds bodies that bring documents, `max_body` all others, and `max_total` the sum of all that
        are in memory."""
        self.app = app
        self._budget = BodyBudget(max_total)
        self._max_body = max_body
        self._max_documents = max_documents
        self._max_headers = max_headers
        self._body_timeout = body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > self._max_headers:
            error = APIError(431, f"The headers are larger than {self._max_headers} bytes.", code="headers_too_large")
            return await error.response()(scope, receive, send)
        most = self._max_documents if DOCUMENTS.fullmatch(scope["path"]) else self._max_body
        declared = next((value for name, value in headers if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > most:
            if not any(name == b"expect" for name, _ in headers):
                await _drain(receive)
            return await too_large(most).response()(scope, receive, send)
        chunked = any(name == b"transfer-encoding" for name, _ in headers)
        announced = int(declared) if declared.isdigit() and not chunked else most if chunked else 0
        if announced <= UNCOUNTED:
            return await self.app(scope, self._bounded(receive, most), send)
        try:
            async with asyncio.timeout(self._body_timeout):
                await self._budget.take(announced)
        except TimeoutError:
            if not any(name == b"expect" for name, _ in headers):
                await _drain(receive)
            message = "Other requests' bodies take all the memory that there is for them; try again in a while."
            error = APIError(503, message, code="bodies_full", headers={"retry-after": "5"})
            return await error.response()(scope, receive, send)
        try:
            return await self.app(scope, self._bounded(receive, most), send)
        finally:
            self._budget.give(announced)

    def _bounded(self, receive: Receive, most: int) -> Receive:
        size, complete, left = 0, False, self._body_timeout
        clock = asyncio.get_running_loop().time

        async def bounded() -> Message:
            # Only time that is spent waiting for the client counts: a handler may come to the body late.
            nonlocal size, complete, left
            if complete:
                return await receive()
            began = clock()
            try:
                async with asyncio.timeout(left):
                    message = await receive()
                left -= clock() - began
            except TimeoutError:
                reason = f"The body did not arrive within {self._body_timeout:g} s."
                raise APIError(408, reason, code="body_timeout", headers=NO_RETRY) from None
            complete = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > most:
                if not complete:
                    await _drain(receive)
                raise too_large(most)
            return message

        return bounded


class BodyBudget:
    """Memory budget of request bodies, in bytes: granted first in, first out, by a body's announced size, before it is
    read."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are free, and reserve them; a size above the whole budget takes all of it."""
        size = min(size, self._size)
        if not self._waiting and size <= self._left:
            self._left -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                self._waiting.remove((size, turn))
                self._serve()
            raise

    def give(self, size: int) -> None:
        """Release a reservation."""
        self._left += min(size, self._size)
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._left:
            size, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._left -= size
                turn.set_result(None)


def too_large(most: int) -> APIError:
    return APIError(413, f"The body is larger than {most} bytes.", code="body_too_large")


async def _drain(receive: Receive) -> None:
    """Discard what the client still sends, for a while: a client that is cut off while it writes would not see the
    response."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while size < DRAIN_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
