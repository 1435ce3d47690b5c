"""Limits on a body's arrival: the time that is spent waiting for the client, and the room that bodies share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from waver.server import limits
from waver.server.errors import APIError
from waver.server.limits import ArrivingBody, BodyBudget, LimitsMiddleware, NoRoom, Room


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


async def test_room_is_given_in_order_and_given_back() -> None:
    room, order = BodyBudget(100), []

    async def one(name: str, size: int) -> None:
        await room.take(size)
        order.append(name)

    await room.take(80)
    waiting = [asyncio.create_task(one(name, size)) for name, size in (("large", 90), ("gone", 50), ("small", 5))]
    await asyncio.sleep(0)
    assert order == []
    waiting[1].cancel()
    await asyncio.sleep(0)
    room.give(80)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert order == ["large", "small"]
    room.give(90)
    room.give(5)
    await asyncio.wait_for(room.take(1000), 1)  # more than there is takes all there is


def trickle(pause: float, size: int = 1) -> Any:
    """A client that sends so many bytes at a time, without an end."""

    async def receive() -> Any:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": b"x" * size, "more_body": True}

    return receive


async def to_the_end(body: ArrivingBody) -> None:
    while (await body())["more_body"]:
        pass


async def test_a_slow_body_gives_way_to_others_that_wait_for_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.1)
    budget = BodyBudget(100_000)
    slow, other = Room(budget, 60), Room(budget, 60)
    await slow.grow(90_000)
    body = ArrivingBody(trickle(0.01), 90_000, slow, 60)
    for _ in range(30):  # nobody waits: it may take its time
        await body()
    waiting = asyncio.create_task(other.grow(50_000))
    with pytest.raises(APIError, match="too slowly") as refused:
        await to_the_end(body)
    assert refused.value.status == 408
    slow.give_back()
    await asyncio.wait_for(waiting, 10)
    assert (slow.size, other.size) == (0, 50_000)


async def test_a_body_that_will_arrive_in_time_keeps_its_room() -> None:
    budget = BodyBudget(1000)
    room = Room(budget, 60)
    await room.grow(900)
    waiting = asyncio.create_task(budget.take(500))
    await asyncio.sleep(0)
    body = ArrivingBody(trickle(0.0), 900, room, 60)
    body._left = 30.0  # half of its time is over
    body._size = 450
    body._check_pace()
    body._size = 449
    with pytest.raises(APIError, match="too slowly"):
        body._check_pace()
    waiting.cancel()


async def test_a_body_of_unknown_size_takes_room_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNCOUNTED", 0)
    monkeypatch.setattr(limits, "STEP", 100)
    monkeypatch.setattr(limits, "DRAIN_SECONDS", 0.05)
    budget = BodyBudget(250)
    first, second = Room(budget, 0.05), Room(budget, 0.05)
    body = ArrivingBody(trickle(0.0, 60), 10_000, first, 60)
    await body()
    assert first.size == 100
    await body()
    assert first.size == 200
    await second.grow(50)
    with pytest.raises(NoRoom):
        await to_the_end(body)
    second.give_back()
    await first.grow(10_000)  # who has the whole budget needs no more
    await first.grow(1)
    assert first.size == 250
    first.give_back()
    await asyncio.wait_for(budget.take(250), 1)
