"""Serialise responses of any size to JSON in pieces, each made and sent within milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from waver.server.sse import dump

ITEMS = 64
"""Of a list that become one piece."""
DEEPEST = 4
PIECE = 64 * 2**10
"""Bytes that are handed to the connection at a time."""
MADE = 16
"""Entries of a `Listed` that are made and written at a time: each may hold dozens of objects."""


@dataclass(frozen=True)
class Listed:
    """A long list that is made while it is written: an `entry` for each of its `items`. The objects of all of them
    together can be millions, which would make a garbage collection long enough to stall the event loop."""

    items: Sequence[Any]
    entry: Callable[[Any], Any]


def pieces(value: Any, depth: int = 0) -> Iterator[bytes]:
    """Yield a value as JSON, piece by piece: long lists are split. A `Listed` may stand in lists and objects down to
    `DEEPEST`."""
    if isinstance(value, dict) and depth < DEEPEST:
        yield b"{"
        for i, (key, each) in enumerate(value.items()):
            yield (b"," if i else b"") + dump(key) + b":"
            yield from pieces(each, depth + 1)
        yield b"}"
    elif isinstance(value, Listed):
        yield b"["
        for start in range(0, len(value.items), MADE):
            made = [value.entry(item) for item in value.items[start : start + MADE]]
            yield (b"," if start else b"") + dump(made)[1:-1]
        yield b"]"
    elif isinstance(value, list) and value:
        yield b"["
        nested = depth < DEEPEST and isinstance(value[0], dict) and _holds_more(value[0])
        size = 1 if nested else ITEMS
        for start in range(0, len(value), size):
            yield b"," if start else b""
            if nested:
                yield from pieces(value[start], depth + 1)
            else:
                yield dump(value[start : start + size])[1:-1]
        yield b"]"
    else:
        yield dump(value)


def _holds_more(value: dict[str, Any]) -> bool:
    return any(isinstance(each, list | dict | Listed) for each in value.values())


class PiecewiseResponse(Response):
    """A JSON response that is sent in pieces, as the client reads them."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, max(len(body), 1), PIECE):
            piece, more = bytes(body[start : start + PIECE]), start + PIECE < len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})
