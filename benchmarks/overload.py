"""Ask for several times what a server can serve: how long accepted requests take, and how soon the rest are refused."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from waver.benchmarks import report
from waver.benchmarks.processes import go_first, serving

RUNNING = 16
"""Requests at a time."""
WAITING = 0
"""Requests that may wait. At several times what can be served, a free slot is taken at once; a queue would only add its
time: with 4 places the slowest twentieth takes 2.4 times what a full server does, with 16 it takes 3.5 times."""
TOKENS = 120
TWICE = 2.0
"""Most by which an accepted request may be slower than one at a server that is just full."""
SOON = 0.05
"""Seconds to a refusal."""

app = report.command()


@dataclass
class Took:
    """Seconds of requests, by what came of them."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    hints: int = 0
    """Refusals with `Retry-After`."""


class Asking:
    """A client that asks the same kind of question again and again."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http, self._numbers = http, itertools.count()

    async def one(self, took: Took) -> None:
        body = {"model": "large", "policy": [], "prompt": f"Question {next(self._numbers)}: 3 + 4 =",
                "max_tokens": TOKENS, "ignore_eos": True}  # fmt: skip
        began = time.perf_counter()
        try:
            answer = await self._http.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            took.other.append(type(error).__name__)
            return
        seconds = time.perf_counter() - began
        if answer.status_code == 200:
            took.accepted.append(seconds)
        elif answer.status_code == 429:
            took.refused.append(seconds)
            took.hints += "retry-after" in answer.headers
        else:
            took.other.append(str(answer.status_code))

    async def full(self, seconds: float) -> tuple[Took, float]:
        """Keep `RUNNING` requests running for so long; return what they took, and how many a second were served."""
        took, until = Took(), time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < until:
                await self.one(took)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(RUNNING)))
        return took, len(took.accepted) / (time.perf_counter() - began)

    async def beyond(self, rate: float, seconds: float) -> Took:
        """Ask `rate` times a second for so long, whatever is answered."""
        took, tasks = Took(), []
        began = time.perf_counter()
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(self.one(took)))
        await asyncio.gather(*tasks)
        return took


async def measure(url: str, times: float, seconds: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        asking = Asking(http)
        await asking.full(2.0)  # warms it up
        full, rate = await asking.full(seconds)
        over = await asking.beyond(times * rate, seconds)
    return {
        "rate": rate,
        "full": quantiles(full.accepted),
        "accepted": {"count": len(over.accepted)} | quantiles(over.accepted),
        "refused": {"count": len(over.refused), "hints": over.hints} | quantiles(over.refused),
        "other": full.other + over.other,
    }


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, the 95th and 99th percentile and the largest; nothing of fewer than two."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "most": max(seconds)}


def verdicts(found: Mapping[str, Any]) -> dict[str, bool]:
    """Say which of the bars are met."""
    return {
        "accepted": found["accepted"].get("p95", 0.0) <= TWICE * found["full"]["p95"],
        "refused": found["refused"].get("p95", 0.0) <= SOON,
        "hints": found["refused"]["hints"] == found["refused"]["count"],
        "nothing else": not found["other"],
    }


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    found, met = numbers["overload"], verdicts(numbers["overload"])
    rows = [
        [name, *(f"{1000 * each[cut]:.0f}" if cut in each else "" for cut in ("p50", "p95", "p99", "most"))]
        for name, each in (
            (f"{RUNNING} at a time, nobody waits", found["full"]),
            (f"accepted ({found['accepted']['count']})", found["accepted"]),
            (f"refused ({found['refused']['count']})", found["refused"]),
        )
    ]
    said = {True: "met", False: "not met"}
    return [
        "# Overload",
        f"Requests for {TOKENS} tokens of the bundled large model at {numbers['settings']['times']:g} times the "
        f"{found['rate']:.1f} a second that a server serves which runs {RUNNING} at a time; {WAITING} more may wait. "
        "Client and server share the machine.",
        report.table(["requests", "p50, ms", "p95, ms", "p99, ms", "most, ms"], rows),
        f"Accepted requests within {TWICE:g} times what a full server takes (p95): {said[met['accepted']]}. Refusals "
        f"within {1000 * SOON:.0f} ms (p95): {said[met['refused']]}; with Retry-After: {said[met['hints']]}. No other "
        f"outcome: {said[met['nothing else']]}.",
    ]


@app.command()
def main(
    context: typer.Context,
    times: Annotated[float, typer.Option(min=1, help="Requests for each that can be served.")] = 4.0,
    seconds: Annotated[float, typer.Option(min=1, help="Time of each of the two measurements.")] = 25.0,
    out: report.Out = report.RESULTS,
) -> None:
    """Ask for four times what can be served: time of accepted requests, and of refusals.

    Writes overload.json and .md. A bit more than a minute on two cores that nobody else uses. Ends with 1 where a bar
    is missed.
    """
    numbers: dict[str, Any] = report.conditions("overload", dict(context.params))
    with tempfile.TemporaryDirectory() as scratch:
        content = {
            "engines": {"large": {"model": "models/large"}},
            "server": {"max_concurrency": RUNNING, "max_queue": WAITING},
        }  # fmt: skip
        with serving(content, Path(scratch), 300) as (url, _):
            numbers["client_first"] = go_first()
            numbers["overload"] = asyncio.run(measure(url, times, seconds))
    report.write(out, "overload", numbers, page(numbers))
    if not all(verdicts(numbers["overload"]).values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
