"""Monitor a server under attack: its event loop, a neighbour's stream, its memory."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families

from waver.benchmarks.processes import resident

LAG = "waver_event_loop_lag_seconds"
WATCHER = Path(__file__).with_name("watcher.py")


@dataclass(frozen=True)
class Seen:
    """Report of a watcher: whether a stream is under way, the longest time between two of its events, how long each
    health check took, and what went wrong. Times in seconds."""

    streaming: bool
    longest: float
    checks: list[float]
    failures: list[str]


class Watcher:
    """A process that watches a server (`watcher.py`)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def take(self) -> Seen:
        """Return what it saw since the last call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        return Seen(**json.loads(await self._process.stdout.readline()))


@asynccontextmanager
async def watching(url: str, kind: Literal["stream", "health"]) -> AsyncIterator[Watcher]:
    """Watch a server's streams, or its health, while the context lasts."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", str(WATCHER), url, kind, stdin=pipe, stdout=pipe, limit=2**24
    )
    try:
        watcher = Watcher(process)
        seen = await watcher.take()
        while not (seen.streaming or seen.checks):  # until it has begun
            await asyncio.sleep(0.05)
            seen = await watcher.take()
        yield watcher
    finally:
        process.kill()
        await process.wait()


async def lags(client: httpx.AsyncClient) -> dict[float, float]:
    """Return how often the event loop was late, by upper bound in seconds, since the server started."""
    text = (await client.get("/metrics", timeout=120)).text
    for family in text_string_to_metric_families(text):
        if family.name == LAG:
            return {float(s.labels["le"]): s.value for s in family.samples if s.name == f"{LAG}_bucket"}
    return {}


def worst(before: dict[float, float], after: dict[float, float]) -> float:
    """The bound of the slowest bucket that was hit between two readings: the lag was at most that."""
    hit, below = 0.0, 0.0
    for bound in sorted(after):
        grown = after[bound] - before.get(bound, 0.0)
        if grown > below:
            hit = bound
        below = grown
    return hit


async def settled(process: int, goal: float, seconds: float) -> int:
    """Bytes that a process holds, once it holds at most `goal` or so much time has passed."""
    deadline = time.monotonic() + seconds
    while (now := resident(process)) > goal and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.25)
    return now
