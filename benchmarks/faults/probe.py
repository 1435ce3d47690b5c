"""Monitor a server under attack: its event loop, a neighbour's stream, its memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
from prometheus_client.parser import text_string_to_metric_families

from waver.benchmarks.processes import resident

LAG = "waver_event_loop_lag_seconds"
NEIGHBOUR = {
    "model": "small", "policy": [], "prompt": "The", "max_tokens": 400, "ignore_eos": True, "temperature": 0,
    "stream": True,
}  # fmt: skip


class Neighbour:
    """A client that streams all the time, and notes how long its streams stand still. Times in seconds."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._last: float | None = None
        self.longest = 0.0
        """The longest time between two events of a stream since `reset`."""
        self.failures: list[str] = []

    def reset(self) -> None:
        self.longest = 0.0
        if self._last is not None:
            self._last = time.perf_counter()

    def note(self) -> None:
        """Count the silence that is going on, too."""
        if self._last is not None:
            self.longest = max(self.longest, time.perf_counter() - self._last)

    async def run(self) -> None:
        while True:
            try:
                async with self._client.stream("POST", "/v1/completions", json=NEIGHBOUR) as answer:
                    if answer.status_code != 200:
                        self.failures.append(f"status {answer.status_code}")
                        await asyncio.sleep(0.5)
                        continue
                    async for line in answer.aiter_lines():
                        if line.startswith("data:"):
                            self.note()
                            self._last = time.perf_counter()
                        if '"error"' in line:
                            self.failures.append(line[:200])
            except httpx.HTTPError as error:
                self.failures.append(repr(error)[:200])
                await asyncio.sleep(0.5)
            self._last = None  # between two streams nothing stands still


@asynccontextmanager
async def neighbour(url: str) -> AsyncIterator[Neighbour]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        found = Neighbour(client)
        task = asyncio.create_task(found.run())
        try:
            yield found
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


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
