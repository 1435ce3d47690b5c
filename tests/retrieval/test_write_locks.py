"""Write locks: one writer at a time for each collection, waited for without a thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from waver.retrieval.base import Busy
from waver.retrieval.write_locks import WriteLocks, busy


async def test_one_at_a_time_for_each_name() -> None:
    locks, inside, most = WriteLocks(5), {"a": 0, "b": 0}, {"a": 0, "b": 0}

    def work(name: str) -> str:
        inside[name] += 1
        most[name] = max(most[name], inside[name])
        inside[name] -= 1
        return name

    with ThreadPoolExecutor(4) as threads:
        names = ["a", "b"] * 50
        assert await asyncio.gather(*(locks.take(n, lambda n=n: work(n), threads) for n in names)) == names  # type: ignore[misc]
    assert most == {"a": 1, "b": 1}
    assert not locks._locks


async def test_a_lock_elsewhere_is_waited_for_and_not_for_ever() -> None:
    left = 3

    def attempt() -> str:
        nonlocal left
        left -= 1
        if left:
            raise busy("a")
        return "written"

    with ThreadPoolExecutor(1) as threads:
        assert await WriteLocks(5).take("a", attempt, threads) == "written"
        left = 10**6
        locks = WriteLocks(0.2)
        with pytest.raises(Busy):
            await locks.take("a", attempt, threads)
        first = asyncio.ensure_future(locks.take("a", attempt, threads))
        with pytest.raises(Busy):
            await locks.take("a", attempt, threads)
        with pytest.raises(Busy):
            await first


async def test_who_leaves_the_queue_lets_the_next_one_in() -> None:
    locks = WriteLocks(5)

    def attempt() -> None:
        raise busy("a")

    with ThreadPoolExecutor(1) as threads:
        first = asyncio.ensure_future(locks.take("a", attempt, threads))
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(locks.take("a", lambda: "written", threads))
        first.cancel()
        assert await second == "written"
