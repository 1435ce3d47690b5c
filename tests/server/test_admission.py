"""Admission: slots, weighted turns between keys, a full queue, and requests that leave while they wait."""

from __future__ import annotations

import asyncio

import pytest

from waver.server.admission import Admission
from waver.server.errors import APIError
from waver.server.tenants.grant import Grant, Identity


def who(name: str, weight: float = 1.0) -> Identity:
    return Identity(name, Grant(weight=weight), "stored")


async def queued(admission: Admission, senders: list[Identity], order: list[str]) -> list[asyncio.Task[None]]:
    """Queue one request of each sender; each notes its name when it is admitted, and ends."""

    async def one(sender: Identity) -> None:
        async with admission.slot(sender):
            order.append(sender.name or "")

    tasks = []
    for sender in senders:
        tasks.append(asyncio.create_task(one(sender)))
        await asyncio.sleep(0)
    return tasks


async def test_one_keys_flood_does_not_hold_up_another() -> None:
    admission, order = Admission(1, 100), list[str]()
    async with admission.slot(who("a")):
        tasks = await queued(admission, [who("a")] * 50 + [who("b")] * 5, order)
        assert (admission.running, admission.waiting) == (1, 55)
    await asyncio.gather(*tasks)
    assert order[:10].count("b") == 5
    assert (admission.running, admission.waiting) == (0, 0)


async def test_turns_are_in_proportion_to_weights() -> None:
    admission, order = Admission(1, 100), list[str]()
    async with admission.slot(who("c")):
        tasks = await queued(admission, [who("a", 3.0)] * 30 + [who("b", 1.0)] * 30, order)
    await asyncio.gather(*tasks)
    assert order[:20].count("a") == pytest.approx(15, abs=1)
    assert order[20:40].count("a") == pytest.approx(15, abs=1)


async def test_a_full_queue_makes_room_for_a_key_with_less_of_it() -> None:
    admission, order = Admission(1, 4), list[str]()
    async with admission.slot(who("a")):
        tasks = await queued(admission, [who("a")] * 4, order)
        with pytest.raises(APIError) as refused:
            async with admission.slot(who("a")):
                pass
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert int(refused.value.headers["retry-after"]) >= 1
        tasks += await queued(admission, [who("b")], order)
        assert admission.waiting == 4
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in ended] == [type(None)] * 3 + [APIError] + [type(None)]
    assert sorted(order) == ["a", "a", "a", "b"]


async def test_room_in_a_queue_of_one_is_made_for_a_heavier_key() -> None:
    admission, order = Admission(1, 1), list[str]()
    async with admission.slot(who("a")):
        tasks = await queued(admission, [who("a")], order)
        with pytest.raises(APIError):
            admission.check(who("a"))
        admission.check(who("b", 4.0))
        tasks += await queued(admission, [who("b", 4.0)], order)
        assert admission.waiting == 1
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    assert [type(each) for each in ended] == [APIError, type(None)]
    assert order == ["b"]


async def test_who_leaves_the_queue_leaves_no_trace() -> None:
    admission, order = Admission(1, 10), list[str]()
    async with admission.slot(who("a")):
        tasks = await queued(admission, [who("a")] * 3, order)
        tasks[1].cancel()
        await asyncio.sleep(0)
        assert admission.waiting == 2
    tasks[0].cancel()  # it was admitted just now
    await asyncio.wait(tasks)
    assert order == ["a"]
    assert (admission.running, admission.waiting) == (0, 0)


async def test_the_wait_that_is_told_is_what_the_queue_takes() -> None:
    admission = Admission(1, 2)
    for _ in range(3):
        async with admission.slot(who("a")):
            await asyncio.sleep(0.02)
    admission._seconds = 8.0  # as long as requests take now
    async with admission.slot(who("a")):
        tasks = await queued(admission, [who("a")] * 2, [])
        with pytest.raises(APIError) as refused:
            async with admission.slot(who("a")):
                pass
        assert refused.value.headers["retry-after"] == "16"
    await asyncio.gather(*tasks)
