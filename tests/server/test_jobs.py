"""A job ends in one of two ways, and both sides know which: it commits and is told, or is given up and does not."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import until
from waver.retrieval.cancellation import Cancelled, CancelToken, in_thread
from waver.server import memory
from waver.server.admission import Admission
from waver.server.errors import APIError
from waver.server.jobs import Jobs


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_a_commit_at_the_last_moment_is_told() -> None:
    def work(token: CancelToken) -> str:
        token.commit()
        time.sleep(0.3)
        return "done"

    with ThreadPoolExecutor(1) as threads:
        assert await Jobs().run(None, lambda token: in_thread(threads, work, token), soon(0.1)) == "done"


async def test_one_that_is_given_up_keeps_its_place_until_its_thread_has_ended() -> None:
    jobs, places, going_on, ends = Jobs(), Admission(1, 0), threading.Event(), []

    def work(token: CancelToken) -> None:
        going_on.wait(60)
        try:
            token.commit()
        except Cancelled:
            ends.append("cancelled")
            raise

    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(TimeoutError):
            await jobs.run(places, lambda token: in_thread(threads, work, token), soon(0.1))
        with pytest.raises(APIError, match="all there is room for"):
            await jobs.run(places, lambda token: in_thread(threads, work, token), soon(0.1))
        going_on.set()
        await asyncio.wait(set(jobs._tokens), timeout=60)
        assert places.running == 0
    assert ends == ["cancelled"]


async def test_what_waits_for_a_place_leaves_the_queue_at_once() -> None:
    jobs, places = Jobs(), Admission(1, 1)
    async with places.slot():
        with pytest.raises(TimeoutError):
            await jobs.run(places, lambda _: asyncio.sleep(0), soon(0.05))
        await asyncio.sleep(0)
        assert places.waiting == 0


async def test_a_stop_cancels_what_has_not_committed() -> None:
    jobs, began = Jobs(), threading.Event()

    def work(token: CancelToken) -> None:
        began.set()
        while True:
            token.check()
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as threads:
        asking = asyncio.ensure_future(jobs.run(None, lambda token: in_thread(threads, work, token), soon(60)))
        await asyncio.to_thread(began.wait)
        await jobs.aclose()
        with pytest.raises(APIError, match="stopping"):
            await asking


async def test_a_failure_of_work_that_nobody_waits_for_is_logged() -> None:
    jobs = Jobs()

    async def fail(_: CancelToken) -> None:
        raise OSError("the disk")

    jobs.spawn(fail, "tidying")
    await jobs.aclose()


async def test_memory_is_given_back_once_after_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = list[int]()
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(1))
    monkeypatch.setattr(memory, "LATER", 0.1)
    jobs = Jobs()
    await jobs.run(None, lambda _: asyncio.sleep(0), soon(60))
    assert jobs._trimmer._due is None
    monkeypatch.setattr("waver.server.jobs.LONG", 0.0)
    await asyncio.gather(*(jobs.run(None, lambda _: asyncio.sleep(0.01), soon(60)) for _ in range(5)))
    assert jobs._trimmer._due is not None
    await asyncio.to_thread(until, lambda: bool(trimmed), "the memory")
    assert trimmed == [1]


def test_trimming_is_harmless_where_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.trim()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.trim()
