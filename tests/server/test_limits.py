"""The time limit on a body's arrival: only time spent waiting for the client counts."""

from __future__ import annotations

import asyncio
from typing import Any

from waver.server.limits import LimitsMiddleware


async def test_a_handler_that_comes_late_to_a_body_does_not_count() -> None:
    """While a request waits inside, its body is there already: the client cannot be told that it was slow."""
    seen: list[Any] = []

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        while (message := await receive())["more_body"]:
            seen.append(message["body"])

    messages = [{"type": "http.request", "body": b"x", "more_body": i < 3} for i in range(4)]

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0)

    scope = {"type": "http", "path": "/v1/completions", "headers": []}
    await LimitsMiddleware(late, 100, 100, 100, body_timeout=0.1, max_total=100)(scope, receive, None)  # type: ignore[arg-type]
    assert seen == [b"x"] * 3
