"""Parse JSON bodies, large ones in a separate process: the parser holds the GIL until it is done, which would stall
every stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from waver.isolation import Exhausted, Overdue, Workers
from waver.server.bodies_worker import COMPRESSED, GZIP, MOST_KEYS, REFERENCE, unreadable
from waver.server.errors import APIError, invalid
from waver.server.tenants.grant import current
from waver.server.turns import Turns

WORKER = Path(__file__).with_name("bodies_worker.py")
INLINE = 64 * 2**10
"""Bytes of a body that is parsed where it is needed: well below a millisecond."""
DEPTH = 200
SECONDS = 20.0
MEMORY = 2 * 2**30
AT_ONCE = 2
QUEUED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/uncertainty"})
"""Paths whose requests wait for a slot. Where the queue has no place for one, it is refused before its body is read: to
parse it and to make its prompt would take time from those that run."""


class Bodies:
    """Parser of JSON bodies with at most `most` values; large ones are parsed in a separate process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bodies")
        self._workers = Workers(WORKER, MEMORY, AT_ONCE)
        self._turns = Turns()

    async def parse(self, data: bytes) -> Any:
        """Parse a JSON body. Callers go on one after the other, as validation comes next.

        Raises:
            JSONDecodeError: it is not JSON.
            APIError: 400, it is not text in UTF-8, compressed, or beyond the parser's bounds; 413, it holds more
                values than are allowed, or takes too long or too much memory.
        """
        if len(data) <= INLINE:
            await self._turns.wait()
            return loads(data)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self.parse_apart, data)
        await self._turns.wait()
        return found

    def parse_apart(self, data: bytes) -> Any:
        """Parse a body in a separate process, blocking the calling thread. Raises the same as `parse`."""
        try:
            answer, found = self._workers.ask({"most": self._most, "depth": DEPTH}, data, SECONDS)
        except (Exhausted, Overdue):
            answer, found = {"large": True}, b""
        if answer.get("large"):
            message = (
                f"The body holds more than {self._most} values, an object of more than {MOST_KEYS} keys, or is nested "
                f"more than {DEPTH} levels deep."
            )
            raise APIError(413, message, code="body_too_large")
        if "unreadable" in answer:
            raise invalid(answer["unreadable"], code="unreadable_body")
        if "error" in answer:
            raise json.JSONDecodeError(answer["error"], "", answer["position"])
        at = answer["structure"]
        structure = json.loads(found[:at].decode("utf-8", "surrogatepass"))
        strings = []
        for length in answer["lengths"]:
            strings.append(found[at : at + length].decode("utf-8", "surrogatepass"))
            at += length
        return filled(structure, strings)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._workers.close()


def loads(data: bytes) -> Any:
    """Parse JSON.

    Raises:
        JSONDecodeError: it is not JSON.
        APIError: 400, it is not text in UTF-8, compressed, or beyond the parser's bounds.
    """
    if data.startswith(GZIP):
        raise invalid(COMPRESSED, code="unreadable_body")
    try:
        return json.loads(data)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise invalid(unreadable(error), code="unreadable_body") from None


def filled(value: Any, strings: list[str]) -> Any:
    """Put the long strings back into a parsed structure."""
    if isinstance(value, list):
        return [filled(each, strings) for each in value]
    if isinstance(value, dict):
        if REFERENCE in value:
            return strings[value[REFERENCE]]
        return {key: filled(each, strings) for key, each in value.items()}
    return value


class BodyRequest(Request):
    """A request whose JSON is parsed by the server's `Bodies`."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            bodies: Bodies = self.app.state.runtime.bodies
            self._json = await bodies.parse(await self.body())
        return self._json


class BodyRoute(APIRoute):
    """A route whose handler receives `BodyRequest`s, and no request for which the queue has no place."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, queued = super().get_route_handler(), self.path in QUEUED

        async def handler(request: Request) -> Response:
            if queued:
                request.app.state.runtime.admission.check(current())
            return await handle(BodyRequest(request.scope, request.receive))

        return handler
