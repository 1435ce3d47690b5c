"""Server-sent events: one write for events that are ready together, and a comment after silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from waver.server.sse import EventStream

Events = AsyncGenerator[list[dict[str, Any]], None]


def sent(events: Events, keepalive: float, leave_after: float = 60, drain: float = 0) -> list[bytes]:
    """The body, write by write, for a client that leaves after so many seconds, and takes `drain` for each write."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)
        await asyncio.sleep(drain)

    async def receive() -> Any:
        await asyncio.sleep(leave_after)
        return {"type": "http.disconnect"}

    asyncio.run(EventStream(events, {}, keepalive)({"type": "http"}, receive, send))
    start, *body = messages
    assert start["type"] == "http.response.start"
    assert [message["more_body"] for message in body[:-1]] == [True] * (len(body) - 1)
    return [message["body"] for message in body]


def test_what_comes_together_goes_out_in_one_write() -> None:
    async def events() -> Events:
        yield [{"a": 1}, {"a": "é\n\u2028"}]
        yield [{"a": 2}]

    assert sent(events(), 15) == [
        b'data: {"a":1}\n\ndata: {"a":"' + "é".encode() + b'\\n\\u2028"}\n\n',
        b'data: {"a":2}\n\n',
        b"data: [DONE]\n\n",
    ]


def test_a_comment_is_sent_each_time_that_nothing_came_for_so_long() -> None:
    async def events() -> Events:
        await asyncio.sleep(0.5)
        for number in range(20):
            yield [{"a": number}]
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)

    writes = sent(events(), 0.2)
    comment = b": keep-alive\n\n"
    first, last = (writes.index(b'data: {"a":%d}\n\n' % number) for number in (0, 19))
    assert writes[:first] == [comment] * 2
    assert comment not in writes[first:last]
    assert writes[last + 1 :] == [comment, b"data: [DONE]\n\n"]


def test_nothing_follows_the_last_line() -> None:
    async def events() -> Events:
        yield [{"a": 1}]

    writes = sent(events(), 0.02, drain=0.05)
    assert b": keep-alive\n\n" in writes
    assert writes[-1] == b"data: [DONE]\n\n"


def test_a_client_that_leaves_closes_the_generator() -> None:
    closed = False

    async def events() -> Events:
        nonlocal closed
        try:
            yield [{"a": 1}]
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            closed = True

    assert sent(events(), 15, leave_after=0.03) == [b'data: {"a":1}\n\n']
    assert closed
