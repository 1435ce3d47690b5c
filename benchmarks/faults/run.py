"""The command: a server of the bundled pair, the hostile set, fuzz, a soak, an overload, and a report."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from waver.benchmarks.faults import fuzz, load
from waver.benchmarks.faults.bombs import bombs
from waver.benchmarks.faults.host import Host
from waver.benchmarks.faults.hostile import PATIENTLY, Hostile, hostile
from waver.benchmarks.faults.probe import Watcher, lags, settled, watching, worst
from waver.benchmarks.faults.rude import Rude, rude
from waver.benchmarks.report import RESULTS, Out, command, conditions, progress, table, verdict, write

app = command()

LAG, PAUSE, MEMORY = 0.1, 0.2, 1.05
"""Bars: seconds that the event loop may be late, seconds that a neighbour's stream may stand still, and the memory
afterwards over that before."""
REST = 4.0
"""Seconds that memory is given to come back."""
ROOM = (16, 32)
"""Requests that run and that wait in the server that is mistreated."""
TIMES = 4
TOOLS = Path(__file__).resolve().parents[2] / "tests" / "server" / "hermes.jinja"
"""A chat template that shows tools."""
DEADLINES = {"header_timeout": 5, "idle_timeout": 5, "body_timeout": 15, "write_timeout": 5}
"""Seconds, shorter than the default ones so that clients which exhaust them do not take long."""


@dataclass
class Outcome:
    """Measurements of one hostile request. Times in seconds, memory in bytes."""

    name: str
    status: str
    seconds: float
    deadline: float
    lag: float
    pause: float
    before: int
    after: int
    failures: tuple[str, ...] = ()
    """Failures of the neighbour."""
    again: tuple[int, int] | None = None
    """Memory before and after it was sent a second time: done where it stayed beyond the bar, to tell what grows with
    each request from a heap that has found its size."""

    @property
    def grew(self) -> bool:
        """True if memory was beyond its bar after it was sent for the first time."""
        return self.after > MEMORY * self.before

    @property
    def flaws(self) -> list[str]:
        found = {
            "late": self.seconds > self.deadline,
            "status": self.status.startswith("5") and self.status not in ("503", "504"),
            "no answer": not self.status.isdecimal() and self.status != "closed",
            "event loop": self.lag > LAG,
            "neighbour": self.pause > PAUSE or bool(self.failures),
            "memory": self.grew and (self.again is None or self.again[1] > MEMORY * self.again[0]),
        }
        return [flaw for flaw, there in found.items() if there]


def everything() -> list[Hostile | Rude]:
    """All that a server is mistreated with."""
    return [*hostile(), *bombs(), *rude()]


@app.command()
def main(
    out: Out = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes: less fuzz, a short soak.")] = False,
    fuzz_count: Annotated[
        int | None, typer.Option(min=1, help="Fuzz requests.", show_default="4000; quick: 400")
    ] = None,
    soak_seconds: Annotated[float | None, typer.Option(min=1, help="Of soak.", show_default="600; quick: 45")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Most for the hostile set.", show_default="60; quick: 15")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the soak.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the fuzz.")] = 1,
) -> None:
    """Send a server of the bundled pair what should not take it down, and measure what its neighbours notice.

    For each hostile request: the event loop's lag (inside, from the server's own histogram), the longest pause of a
    neighbour's stream (outside), memory before and after, and whether there was an answer within its deadline.
    Everything is on this machine, and bounded in number and time.
    """
    count = fuzz_count or (400 if quick else 4000)
    most = minutes or (15.0 if quick else 60.0)
    seconds = soak_seconds or (45.0 if quick else 600.0)
    with tempfile.TemporaryDirectory() as folder, Host(configuration(folder), Path(folder)) as host:
        numbers = asyncio.run(measure(host, most, count, seconds, clients, seed))
    settings = {
        "quick": quick,
        "fuzz_count": count,
        "soak_seconds": seconds,
        "minutes": most,
        "clients": clients,
        "seed": seed,
    }
    numbers |= conditions("faults", settings)
    write(out, "faults", numbers, page(numbers))


def configuration(folder: str) -> dict[str, Any]:
    most, waiting = ROOM
    pair = {
        name: {"backend": "transformers", "model": f"models/{name}", "chat_template": str(TOOLS)}
        for name in ("small", "large")
    }
    return {
        "engines": {**pair, "see": {"model": "models/vision"}},
        "retrieval": {"path": f"{folder}/collections"},
        "server": {"max_concurrency": most, "max_queue": waiting, "timeout": PATIENTLY, **DEADLINES},
    }


async def measure(host: Host, minutes: float, count: int, seconds: float, clients: int, seed: int) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=host.url, timeout=180) as client:
        await prepare(client)
        idle = await watch_idle(host.url, client)
        outcomes = await mistreat(host, client, minutes)
        broken = await send_fuzz(client, count, seed)
        soaked = await load.soak(host.url, host.process, seconds, clients)
        overloaded = await load.overload(host.url, sum(ROOM), TIMES)
        ready = (await client.get("/ready")).status_code == 200
    return {
        "idle": idle,
        "not_reached": [each.name for each in everything()[len(outcomes) :]],
        "hostile": [{**asdict(each), "flaws": each.flaws} for each in outcomes],
        "fuzz": broken,
        "soak": soaked,
        "overload": overloaded,
        "ready_afterwards": ready,
        "deaths": host.deaths,
    }


async def prepare(client: httpx.AsyncClient) -> None:
    """Make the collection, and let everything load that loads at its first use."""
    made = await client.post("/v1/collections", json={"name": "hostile"})
    if made.status_code != 409:  # it is there when a server was started again
        made.raise_for_status()
    body = {"documents": [{"id": "first", "text": "A text with some words. " * 20}]}
    (await client.post("/v1/collections/hostile/documents", json=body)).raise_for_status()
    for request in (load.question(number) for number in range(len(load.WAYS))):
        (await client.post("/v1/chat/completions", json=request)).raise_for_status()
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "integer"}}}}
    await client.post("/v1/chat/completions", json={**load.question(0), **form})
    files = {"file": ("a.html", b"<p>A text.</p>", "text/html")}
    (await client.post("/v1/collections/hostile/documents", files=files)).raise_for_status()


async def watch_idle(url: str, client: httpx.AsyncClient, seconds: float = 10.0) -> dict[str, float]:
    """Lag and pauses with nobody but the neighbour: what the machine itself does."""
    async with watching(url, "stream") as other:
        await asyncio.sleep(1)
        await other.take()
        before = await lags(client)
        await asyncio.sleep(seconds)
        seen = await other.take()
        return {"lag": worst(before, await lags(client)), "pause": seen.longest}


async def mistreat(host: Host, client: httpx.AsyncClient, minutes: float) -> list[Outcome]:
    found, until = [], time.monotonic() + 60 * minutes
    with progress() as bar:
        task = bar.add_task("hostile requests", total=None)
        requests = everything()
        bar.update(task, total=len(requests))
        async with watching(host.url, "stream") as other:
            for each in requests:
                if time.monotonic() > until:
                    break
                found.append(await one(each, host, client, other))
                if found[-1].grew and host.alive:
                    second = await one(each, host, client, other)
                    found[-1].again = (second.before, second.after)
                if not host.alive:
                    host.deaths.append(each.name)
                    await asyncio.to_thread(host.start)
                    await prepare(client)
                bar.update(task, advance=1, description=each.name[:30])
    return found


async def one(what: Hostile | Rude, host: Host, client: httpx.AsyncClient, other: Watcher) -> Outcome:
    send = what.send(client) if isinstance(what, Hostile) else what.send("127.0.0.1", host.port)
    before, loop = host.memory, await lags(client)
    await other.take()
    status, seconds = await send
    seen = await other.take()
    try:
        lag = worst(loop, await lags(client))
    except httpx.HTTPError:
        return Outcome(what.name, "server gone", seconds, what.seconds, math.nan, seen.longest, before, 0)
    after = await settled(host.process, MEMORY * before, REST)
    return Outcome(what.name, status, seconds, what.seconds, lag, seen.longest, before, after, tuple(seen.failures))


async def send_fuzz(client: httpx.AsyncClient, count: int, seed: int) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    failures: list[dict[str, str]] = []
    turn = asyncio.Semaphore(8)

    async def send(method: str, path: str, body: bytes) -> None:
        async with turn:
            try:
                answer = await client.request(method, path, content=body, headers={"content-type": "application/json"})
                status = str(answer.status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
        statuses[status] += 1
        if status.startswith("5") or not status.isdecimal():
            failures.append({"status": status, "method": method, "path": path, "body": repr(body[:300])})

    with progress() as bar:
        task = bar.add_task("fuzz", total=count)
        requests = fuzz.requests(count, seed, (await client.get("/openapi.json")).json())
        for start in range(0, count, 100):
            await asyncio.gather(*(send(*each) for each in requests[start : start + 100]))
            bar.update(task, completed=min(start + 100, count))
    return {"count": count, "statuses": dict(statuses), "failures": failures[:20], "failed": len(failures)}


def memory(outcome: dict[str, Any]) -> str:
    """Return by how much memory grew, also at the second time where there was one."""
    pairs = [(outcome["before"], outcome["after"]), *([outcome["again"]] if outcome["again"] else [])]
    return ", again ".join(f"{after / before - 1:+.1%}" for before, after in pairs)


def page(numbers: dict[str, Any]) -> list[str]:
    """The report's paragraphs."""
    outcomes, idle, soak, over = numbers["hostile"], numbers["idle"], numbers["soak"], numbers["overload"]
    clean = sum(not each["flaws"] for each in outcomes)
    rows = [
        [
            each["name"], each["status"], f"{each['seconds']:.2f} ({each['deadline']:g})", f"≤ {1000 * each['lag']:g}",
            f"{1000 * each['pause']:.0f}", memory(each),
            ", ".join(each["flaws"]) or "–",
        ]
        for each in outcomes
    ]  # fmt: skip
    drift = soak["memory_late"] / soak["memory_early"] - 1
    share = soak["different"] / soak["replays"] if soak["replays"] else 0.0
    refused = over["statuses"].get("429", 0)
    fuzzed = ", ".join(f"{status}: {count}" for status, count in sorted(numbers["fuzz"]["statuses"].items()))
    return [
        "# Faults: what neighbours notice of hostile requests",
        f"One server of the bundled pair (at most {ROOM[0]} requests at a time, {ROOM[1]} waiting), one neighbour that "
        f"streams all the time. {clean} of {len(outcomes)} hostile requests kept to every bar: an answer within its "
        f"deadline, event loop at most {1000 * LAG:.0f} ms late, no pause of the neighbour over {1000 * PAUSE:.0f} ms, "
        f"memory back within 5 % (where it was not, the request was sent again, and the second growth counts). With "
        f"nobody but the neighbour the loop was at most {1000 * idle['lag']:g} ms late, and the longest pause "
        f"{1000 * idle['pause']:.0f} ms: that much is the machine's.",
        table(
            ["request", "status", "s (deadline)", "loop late, ms", "neighbour's pause, ms", "memory", "beyond a bar"],
            rows,
        ),
        f"Not reached in time: {', '.join(numbers['not_reached']) or 'none'}.",
        f"Fuzz: {numbers['fuzz']['count']} requests, statuses {fuzzed}; server errors or no answer: "
        f"{numbers['fuzz']['failed']} ({verdict(not numbers['fuzz']['failed'])}).",
        f"Soak: {soak['answers']} answers in {soak['seconds']:.0f} s to {soak['clients']} clients (statuses "
        f"{soak['statuses']}), memory {drift:+.1%} from the second to the last quarter ({verdict(abs(drift) < 0.05)}). "
        f"{soak['different']} of {soak['replays']} replays of a seeded request at temperature 1 came out differently "
        f"({share:.2%}).",
        f"Overload: {over['times'] * over['room']} questions at once where {over['room']} have room: statuses "
        f"{over['statuses']}, {over['hints']} of {refused} refusals with Retry-After; {over['health_checks']} health "
        f"checks meanwhile took {1000 * over['health_p50']:.0f} ms (median), {1000 * over['health_p99']:.0f} ms (99th "
        f"percentile) and {1000 * over['health_most']:.0f} ms at most.",
        f"Servers that went down: {len(numbers['deaths'])} ({verdict(not numbers['deaths'])})"
        + "".join(f", by {name}" for name in numbers["deaths"])
        + ".",
        f"Ready afterwards: {verdict(numbers['ready_afterwards'])}.",
    ]
