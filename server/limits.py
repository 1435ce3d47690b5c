"""Bounds on what a request may weigh: its headers, its body, and the time its body takes to arrive."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waver.server.errors import NO_RETRY, APIError

DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0
DOCUMENTS = re.compile(r"/v1/collections/[^/]+/documents")


class LimitsMiddleware:
    """413 for a large body, declared or streamed; 431 for large headers; 408 for a body that trickles in."""

    def __init__(self, app: ASGIApp, max_body: int, max_documents: int, max_headers: int, body_timeout: float) -> None:
        """`max_documents` bounds the bodies that bring documents, `max_body` all others; both in bytes."""
        self.app = app
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
        return await self.app(scope, self._bounded(receive, most), send)

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


def too_large(most: int) -> APIError:
    return APIError(413, f"The body is larger than {most} bytes.", code="body_too_large")


async def _drain(receive: Receive) -> None:
    """Read on for a while: a client that is cut off while it writes would never see the answer."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while size < DRAIN_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
