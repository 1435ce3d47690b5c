"""Streams that clients leave in every way that a socket allows: what a server holds afterwards is what it held before.

A stream is cut after a random number of bytes (closed, or reset), read a little at a time, not read at all, half-closed
by its client before the answer, or left without a word while the answer is still waited for.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx
import typer

from waver.benchmarks import report
from waver.benchmarks.processes import resident, serving

Way = Literal["whole", "closed", "reset", "slow", "unread", "half-closed", "left"]
WAYS: tuple[Way, ...] = ("whole", "closed", "reset", "slow", "unread", "half-closed", "left")
SLOW = 0.01
"""Seconds between two reads of a slow reader."""
UNREAD = 1.0
"""Seconds for which a client that reads nothing stays."""
DEADLINE = 60.0
"""Seconds for a stream that is read, and for a server to be at rest afterwards."""
AT_ONCE = 16
BAR = 0.05
"""Part by which memory may have grown."""

app = report.command()


@dataclass(frozen=True)
class Request:
    """A streamed request, and the way in which it is left, after `size` bytes of the answer."""

    way: Way
    size: int
    body: bytes
    path: str


def requests(count: int, seed: int, models: tuple[str, ...] = ("small", "large")) -> list[Request]:
    """Return so many requests: the same for the same seed."""
    draw, made = random.Random(f"streams:{seed}"), []
    for i in range(count):
        model, chat = draw.choice(models), draw.random() < 0.5
        policy: list[dict[str, Any]] = []
        if len(models) > 1 and draw.random() < 0.3:
            policy = [{"name": "ead", "small": models[0], "large": models[1], "threshold": 0.5}]
        body: dict[str, Any] = {
            "model": models[-1] if policy else model, "policy": policy, "stream": True, "ignore_eos": True,
            "max_tokens": draw.randint(1, 300), "n": draw.choice((1, 1, 1, 4)), "seed": i,
        }  # fmt: skip
        body |= {"messages": [{"role": "user", "content": f"{i}?"}]} if chat else {"prompt": f"{i}?"}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        made.append(Request(WAYS[i % len(WAYS)], draw.randint(0, 6000), json.dumps(body).encode(), path))
    draw.shuffle(made)
    return made


async def leave(request: Request, host: str, port: int) -> str:
    """Send a request and leave it in its way; return what its client saw: a status, or `late` or `refused`."""
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=2**16)
    except OSError:
        return "refused"
    head = f"POST {request.path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    head += f"Connection: close\r\nContent-Length: {len(request.body)}\r\n\r\n"
    own: socket.socket = writer.get_extra_info("socket")
    try:
        async with asyncio.timeout(DEADLINE):
            writer.write(head.encode() + request.body)
            await writer.drain()
            return await _leave(request, reader, writer)
    except TimeoutError:
        return "late"
    except OSError:
        return "reset"
    finally:
        if request.way == "reset":
            with suppress(OSError):
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort() if request.way in ("reset", "left") else writer.close()


async def _leave(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    if request.way == "left":
        return "left"
    if request.way == "unread":
        await asyncio.sleep(UNREAD)
        return "left"
    if request.way == "half-closed":
        writer.write_eof()
    status = (await reader.readline()).split()
    if len(status) < 2:
        return "closed"
    read = 0
    while data := await reader.read(64 if request.way == "slow" else 1024):
        read += len(data)
        if request.way in ("closed", "reset", "slow") and read > request.size:
            break
        if request.way == "slow":
            await asyncio.sleep(SLOW)
    return status[1].decode()


async def mistreat(url: str, made: list[Request]) -> dict[str, int]:
    """Send requests, some at a time; return what their clients saw, by way."""
    address, seen = urlsplit(url), Counter[str]()
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(request: Request) -> None:
        async with turn:
            seen[f"{request.way}: {await leave(request, address.hostname or '', address.port or 80)}"] += 1

    await asyncio.gather(*(one(request) for request in made))
    return dict(sorted(seen.items()))


def active(url: str) -> float:
    """Return the sequences and requests that a server works on."""
    names = ("waver_active_sequences{", "waver_requests_running ", "waver_requests_waiting ")
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def rest(url: str) -> tuple[float, float]:
    """Wait until a server works on nothing; return what it still works on after `DEADLINE`, and the seconds."""
    began = time.monotonic()
    while (left := active(url)) and time.monotonic() - began < DEADLINE:
        time.sleep(0.1)
    return left, time.monotonic() - began


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    rounds = numbers["rounds"]
    first, last = rounds[0]["memory"], rounds[-1]["memory"]
    rows = [
        [str(i), f"{each['memory'] / 2**20:.0f}", f"{each['left']:g}", f"{each['seconds']:.1f}"]
        for i, each in enumerate(rounds)
    ]
    seen = Counter[str]()
    for each in rounds:
        seen.update(each["seen"])
    return [
        "# Streams that are left",
        f"{numbers['settings']['count']} streams in each of {len(rounds)} rounds, {AT_ONCE} at a time, left in "
        f"{len(WAYS)} ways ({', '.join(WAYS)}). Afterwards the server worked on nothing, within the time shown; its "
        f"memory changed by {last / first - 1:+.1%} from the first round, which warms it up, to the last "
        f"({'met' if _met(numbers) else 'not met'}).",
        report.table(["round", "memory, MiB", "sequences left", "until then, s"], rows),
        "What clients saw: " + ", ".join(f"{name} {count}" for name, count in sorted(seen.items())) + ".",
    ]


def _met(numbers: Mapping[str, Any]) -> bool:
    rounds = numbers["rounds"]
    grown = rounds[-1]["memory"] / rounds[0]["memory"] - 1
    late = any(name.endswith((": late", ": 500")) for each in rounds for name in each["seen"])
    return grown <= BAR and not late and not any(each["left"] for each in rounds)


@app.command()
def main(
    context: typer.Context,
    count: Annotated[int, typer.Option(min=7, help="Streams of a round.")] = 350,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; the first one warms the server up.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the streams.")] = 1,
    out: report.Out = report.RESULTS,
) -> None:
    """Leave streams in every way, and compare what a server of the bundled pair holds before and after.

    Writes streams.json and .md. Some two minutes on two cores. Ends with 1 where something is left.
    """
    numbers: dict[str, Any] = report.conditions("streams", dict(context.params)) | {"rounds": []}
    content = {"engines": {name: {"model": f"models/{name}"} for name in ("small", "large")}}
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(content, Path(scratch), 300) as (url, process),
        report.progress() as bar,
    ):
        task = bar.add_task("rounds", total=rounds)
        for number in range(rounds):
            seen = asyncio.run(mistreat(url, requests(count, seed + number)))
            left, seconds = rest(url)
            numbers["rounds"].append({"seen": seen, "left": left, "seconds": seconds, "memory": resident(process)})
            bar.advance(task)
    report.write(out, "streams", numbers, page(numbers))
    if not _met(numbers):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
