"""Many requests that come at once go on one after the other; a health check does not wait for them."""

from __future__ import annotations

import asyncio
from typing import Any

from waver.server.turns import Turns, TurnsMiddleware

MANY = 50


async def test_one_goes_on_in_each_turn_of_the_loop_and_the_first_comes_first() -> None:
    turns, order = Turns(), list[int]()

    async def one(number: int) -> None:
        await turns.wait()
        order.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(MANY)]
    while len(order) < MANY:
        before = len(order)
        await asyncio.sleep(0)
        assert len(order) - before <= 1
    assert order == list(range(MANY))
    await asyncio.gather(*tasks)


async def test_a_request_that_leaves_does_not_hold_up_the_others() -> None:
    turns = Turns()
    tasks = [asyncio.create_task(turns.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks[:2]:
        task.cancel()
    await asyncio.wait_for(tasks[2], 10)


async def test_health_checks_do_not_wait() -> None:
    order = list[str]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        order.append(scope["path"])

    middleware = TurnsMiddleware(app)
    paths = ["/v1/chat/completions"] * MANY + ["/health"]
    await asyncio.gather(*(middleware({"type": "http", "path": path}, None, None) for path in paths))  # type: ignore[arg-type]
    assert order.index("/health") <= 1
    assert len(order) == MANY + 1
