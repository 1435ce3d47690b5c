"""Limit requests: the size of their headers and body, and the time that the body takes to arrive."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waver.server.errors import NO_RETRY, APIError

DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0
UNCOUNTED = 64 * 2**10
"""Bytes of a body that is let in without asking for room."""
STEP = 256 * 2**10
"""Bytes of room that a body of unknown size asks for at a time."""
PATIENCE = 5.0
"""Seconds for which a body may come too slowly to arrive in time, while others wait for the room that it has."""
DOCUMENTS = re.compile(r"/v1/collections/[^/]+/documents")
CONVERSATIONS = re.compile(r"(/v1)?/(chat/completions|responses|messages|messages/count_tokens|tokenize)")


class LimitsMiddleware:
    """Middleware that answers 413 to a large body, declared or streamed, 415 to a compressed one, 431 to large headers,
    and 408 to a body that does not arrive in time."""

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        max_documents: int,
        max_headers: int,
        body_timeout: float,
        max_total: int,
        max_conversation: Callable[[], int] | None = None,
    ) -> None:
        """Set the limits, in bytes and seconds.

        `max_documents` bounds bodies that bring documents, `max_conversation` those that may bring pictures, `max_body`
        all others, and `max_total` the sum of all that are in memory."""
        self.app = app
        self._budget = BodyBudget(max_total)
        self._max_body = max_body
        self._max_documents = max_documents
        self._max_conversation = max_conversation or (lambda: max_body)
        self._max_headers = max_headers
        self._body_timeout = body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > self._max_headers:
            error = APIError(431, f"The headers are larger than {self._max_headers} bytes.", code="headers_too_large")
            return await error.response()(scope, receive, send)
        encoding = next((value for name, value in headers if name == b"content-encoding"), b"identity")
        if encoding.strip().lower() not in (b"identity", b""):
            shown = encoding.decode("latin-1")[:40]
            error = APIError(
                415,
                f"The body is compressed ('Content-Encoding: {shown}'), which is not read: send it as it is.",
                code="unsupported_encoding",
                headers={"accept-encoding": "identity"},
            )
            return await error.response()(scope, receive, send)
        most = self._max_documents if DOCUMENTS.fullmatch(scope["path"]) else self._max_body
        if CONVERSATIONS.fullmatch(scope["path"]):
            most = max(most, self._max_conversation())
        declared = next((value for name, value in headers if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > most:
            if not any(name == b"expect" for name, _ in headers):
                await _drain(receive)
            return await too_large(most).response()(scope, receive, send)
        chunked = any(name == b"transfer-encoding" for name, _ in headers)
        announced = STEP if chunked else int(declared) if declared.isdigit() else 0
        room = Room(self._budget, self._body_timeout)
        if announced > UNCOUNTED:
            try:
                await room.grow(min(announced, most))
            except NoRoom as error:
                if not any(name == b"expect" for name, _ in headers):
                    await _drain(receive)
                return await error.response()(scope, receive, send)
        try:
            return await self.app(scope, ArrivingBody(receive, most, room, self._body_timeout), send)
        finally:
            room.give_back()


class ArrivingBody:
    """Stands for `receive` while a body arrives: within `most` bytes, in `seconds`, and in the room that it has.

    Only time that is spent waiting for the client counts: a handler may come to the body late.
    """

    def __init__(self, receive: Receive, most: int, room: Room, seconds: float) -> None:
        self._receive, self._most, self._room, self._seconds = receive, most, room, seconds
        self._size, self._complete, self._left = 0, False, seconds

    async def __call__(self) -> Message:
        """Receive the next message.

        Raises:
            APIError: 408, the body does not arrive in time; 413, it is too large; 503, there is no room for it.
        """
        if self._complete:
            return await self._receive()
        message = await self._next()
        self._complete = not message.get("more_body", False)
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            if not self._complete:
                await _drain(self._receive)
            raise too_large(self._most)
        if not self._complete:
            self._check_pace()
            await self._make_room()
        return message

    async def _next(self) -> Message:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._left, PATIENCE)):
                    message = await self._receive()
                self._left -= clock() - began
                return message
            self._left -= clock() - began
            self._check_pace()

    def _check_pace(self) -> None:
        if self._left <= 0:
            reason = f"The body did not arrive within {self._seconds:g} s."
            raise APIError(408, reason, code="body_timeout", headers=NO_RETRY)
        passed = self._seconds - self._left
        if self._room.wanted and passed >= PATIENCE and self._size < self._room.size * passed / self._seconds:
            reason = "The body comes too slowly, while other requests wait for room in memory."
            raise APIError(408, reason, code="body_timeout", headers=NO_RETRY)

    async def _make_room(self) -> None:
        if self._size > max(self._room.size, UNCOUNTED):
            try:
                await self._room.grow(STEP)
            except NoRoom:
                await _drain(self._receive)
                raise


class NoRoom(APIError):
    """Other bodies take all the memory that there is for them."""

    def __init__(self) -> None:
        message = "Other requests' bodies take all the memory that there is for them; try again in a while."
        super().__init__(503, message, code="bodies_full", headers={"retry-after": "5"})


class Room:
    """The room that one body has in a budget: `size` bytes. It may be waited for so many `seconds` at a time."""

    def __init__(self, budget: BodyBudget, seconds: float) -> None:
        self._budget, self._seconds = budget, seconds
        self.size = 0

    @property
    def wanted(self) -> bool:
        """Return whether others wait for room."""
        return self._budget.wanted

    async def grow(self, size: int) -> None:
        """Wait for `size` bytes more; who has the whole budget needs no more.

        Raises:
            NoRoom: they did not become free in time.
        """
        size = min(size, self._budget.size - self.size)
        if size <= 0:
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._budget.take(size)
        except TimeoutError:
            raise NoRoom from None
        self.size += size

    def give_back(self) -> None:
        self._budget.give(self.size)
        self.size = 0


class BodyBudget:
    """Memory budget of request bodies, in bytes: granted first in, first out, before they are read; by a body's
    announced size, or step by step where it announces none."""

    def __init__(self, size: int) -> None:
        self.size = self._left = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def wanted(self) -> bool:
        """Return whether somebody waits for bytes."""
        return bool(self._waiting)

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are free, and reserve them; a size above the whole budget takes all of it."""
        size = min(size, self.size)
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
        self._left += min(size, self.size)
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
