"""The faults benchmark: its requests, what it measures with, and one small run from end to end."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from waver.benchmarks.faults import fuzz, run
from waver.benchmarks.faults.hostile import Hostile, chat, complete
from waver.benchmarks.faults.probe import lags, watching, worst
from waver.benchmarks.faults.rude import Rude, many, post, slow
from waver.benchmarks.faults.run import Outcome, everything


def test_the_hostile_set_is_large_and_its_names_differ() -> None:
    found = everything()
    assert len(found) >= 60
    assert len({each.name for each in found}) == len(found)


def test_fuzz_is_the_same_for_the_same_seed() -> None:
    first, other = fuzz.requests(200, 1), fuzz.requests(200, 2)
    assert first == fuzz.requests(200, 1)
    assert first != other
    assert len({body for _, _, body in first}) > 150


def test_the_worst_lag_is_the_slowest_bucket_that_grew() -> None:
    before = {0.05: 10.0, 0.1: 11.0, 1.0: 12.0, float("inf"): 12.0}
    assert worst(before, {0.05: 30.0, 0.1: 31.0, 1.0: 32.0, float("inf"): 32.0}) == 0.05
    assert worst(before, {0.05: 30.0, 0.1: 31.0, 1.0: 33.0, float("inf"): 33.0}) == 1.0


def test_a_flaw_is_named() -> None:
    good = {"name": "a", "status": "400", "seconds": 1.0, "deadline": 5.0, "lag": 0.1, "pause": 0.2, "before": 100}
    assert Outcome(**good, after=105).flaws == []
    assert Outcome(**good, after=106).flaws == ["memory"]
    assert Outcome(**good, after=106, again=(106, 112)).flaws == ["memory"]
    assert Outcome(**good, after=106, again=(106, 107)).flaws == []
    bad = {**good, "status": "500", "seconds": 6.0, "lag": 0.25, "pause": 0.3}
    assert Outcome(**bad, after=100).flaws == ["late", "status", "event loop", "neighbour"]
    assert "no answer" in Outcome(**{**good, "status": "ReadError"}, after=100).flaws


async def test_a_loop_that_stands_still_is_seen_inside_and_outside(running: Any) -> None:
    async def block() -> None:
        time.sleep(0.6)  # noqa: ASYNC251  # what a server must not do

    async with (
        httpx.AsyncClient(base_url=running.url, timeout=60) as client,
        watching(running.url, "stream") as stream,
        watching(running.url, "health") as health,
    ):
        await health.take()
        await stream.take()
        before = await lags(client)
        await asyncio.to_thread(running.run, block())
        await asyncio.sleep(0.2)
        seen, checks = await stream.take(), (await health.take()).checks
        assert 0.5 < worst(before, await lags(client)) < 60
        assert seen.longest > 0.5
        assert max(checks) > 0.4
        assert not seen.failures


async def test_connections_that_do_not_behave_come_to_an_end(running: Any) -> None:
    port = int(running.url.rpartition(":")[2])
    nonsense = Rude("nonsense", lambda: [b"\0\1\2\r\n\r\n"], 20.0, connections=3)
    assert (await nonsense.send("127.0.0.1", port))[0] == "400"
    models = next(each for each in many() if "requests at once" in each.name)
    assert (await models.send("127.0.0.1", port))[0] == "200"
    assert {each.pause > 0 for each in slow()} == {True, False}
    assert (
        post("/a", "X: 1") == b"POST /a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nX: 1\r\n\r\n"
    )


@pytest.mark.timeout(600)
def test_a_run_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few() -> list[Hostile]:
        return [
            Hostile("n 10^6", "/v1/chat/completions", chat(n=10**6)),
            Hostile("long", "/v1/completions", complete()),
        ]

    monkeypatch.setattr(run, "everything", few)
    monkeypatch.setattr(run, "TIMES", 1)
    run.app(args=["--fuzz-count", "20", "--soak-seconds", "3", "--out", str(tmp_path)], standalone_mode=False)
    found = json.loads((tmp_path / "faults.json").read_text())
    assert [each["status"] for each in found["hostile"]] == ["400", "200"]
    assert sum(found["fuzz"]["statuses"].values()) == 20
    assert found["fuzz"]["failed"] == 0
    assert found["soak"]["answers"] > 0
    assert found["overload"]["statuses"] == {"200": sum(run.ROOM)}  # as many as run and wait
    assert found["overload"]["health_checks"] > 0
    assert found["overload"]["health_failures"] == []
    assert found["not_reached"] == []
    assert found["ready_afterwards"]
    assert found["deaths"] == []
    assert (tmp_path / "faults.md").read_text().startswith("# Faults")
