"""Connections that no client library makes: half a request, a body byte by byte, an answer that nobody reads.

Each is as many connections as it says, side by side. What counts as its end is an answer or a closed connection.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat

from waver.benchmarks.faults.hostile import CHAT, DOCUMENTS, MIB, PATIENTLY, SOON, TEXT

READ = 65_536
HEAD = ("Host: 127.0.0.1", "Content-Type: application/json")


@dataclass(frozen=True)
class Rude:
    """Connections of one kind. `parts` are written one after the other, `pause` seconds apart; `reads`: whether the
    answer is read. `seconds` is the deadline for the end of all of them."""

    name: str
    parts: Callable[[], Iterable[bytes]]
    seconds: float
    connections: int = 1
    pause: float = 0.0
    reads: bool = True

    async def send(self, host: str, port: int) -> tuple[str, float]:
        """Make the connections.

        Returns:
            The most frequent end of them (a status, or `closed`, or `open` where the deadline passed three times), and
            the seconds until the last one.
        """
        began = time.perf_counter()
        ends = await asyncio.gather(*(self._one(host, port) for _ in range(self.connections)))
        return Counter(ends).most_common(1)[0][0], time.perf_counter() - began

    async def _one(self, host: str, port: int) -> str:
        try:
            reader, writer = await asyncio.open_connection(host, port, limit=READ)
        except OSError as error:
            return type(error).__name__
        if not self.reads:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        writing = asyncio.create_task(self._write(writer))
        try:
            async with asyncio.timeout(3 * self.seconds):
                return await (self._status(reader) if self.reads else self._cut(writer))
        except TimeoutError:
            return "open"
        finally:
            writing.cancel()
            writer.transport.abort()
            await asyncio.wait({writing})

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            for part in self.parts():
                writer.write(part)
                await writer.drain()
                if self.pause:
                    await asyncio.sleep(self.pause)

    async def _status(self, reader: asyncio.StreamReader) -> str:
        """Read all that comes; the status of its first line."""
        first = b""
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            first = await reader.readline()
            while await reader.read(READ):
                pass
        return first.split()[1].decode() if first.startswith(b"HTTP/1.1 ") else "closed"

    async def _cut(self, writer: asyncio.StreamWriter) -> str:
        """Wait until the other side ends a connection that is not read. A closed one is noticed by writing to it."""
        while not writer.transport.is_closing():
            await asyncio.sleep(0.5)
            with suppress(OSError):
                writer.write(b"\r\n")
        return "closed"


def rude() -> list[Rude]:
    """The whole set."""
    return [*slow(), *malformed(), *many()]


LATE = 30.0
"""Seconds to the 408 of a body that does not come: the server waits 20 s, and 5 s more where memory is short."""


def post(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", *HEAD, *headers, "", ""]).encode()


def chunks(size: int, count: int) -> Iterator[bytes]:
    return repeat(b"%x\r\n%b\r\n" % (size, b" " * size), count)


def slow() -> Iterator[Rude]:
    """Clients that take their time."""
    yield Rude("100 heads that trickle", lambda: (bytes([each]) for each in post(CHAT)), SOON, 100, 0.5)
    yield Rude("100 chunked bodies that trickle",
               lambda: chain([post(CHAT, "Transfer-Encoding: chunked")], chunks(1, 1000)), LATE, 100, 0.5)  # fmt: skip
    yield Rude("8 bodies of 60 MiB that trickle",
               lambda: chain([post(DOCUMENTS, f"Content-Length: {60 * MIB}")], repeat(b" ", 1000)), LATE, 8, 0.5,
               )  # fmt: skip
    yield Rude("a body that is announced and never sent", lambda: [post(CHAT, "Content-Length: 1000")], LATE)
    yield Rude("a body that is asked for and never sent",
               lambda: [post(CHAT, "Content-Length: 1000", "Expect: 100-continue")], LATE)  # fmt: skip
    yield Rude("a chunk of 2^80", lambda: [post(CHAT, "Transfer-Encoding: chunked") + b"f" * 20 + b"\r\n"], LATE)
    body = json.dumps({
        "model": "small", "policy": [], "prompt": "1 2 3 4 " * 100, "n": 32, "echo": True, "logprobs": 20,
        "max_tokens": 1, "stream": True,
    }).encode()  # fmt: skip
    yield Rude("8 streams that are never read", lambda: [post(TEXT, f"Content-Length: {len(body)}") + body], PATIENTLY,
               8, reads=False)  # fmt: skip


def malformed() -> Iterator[Rude]:
    """Heads and bodies that are no HTTP, or could be read in two ways."""
    chunked = post(CHAT, "Transfer-Encoding: chunked")
    upgrade = ("Host: 127.0.0.1", "Upgrade: h2c", "Connection: Upgrade, close")
    for name, data in {
        "two lengths": post(CHAT, "Content-Length: 2", "Content-Length: 3") + b"{}",
        "a length and chunks": post(CHAT, "Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        "a negative length": post(CHAT, "Content-Length: -1"),
        "a length of 10^30": post(CHAT, f"Content-Length: {10**30}"),
        "a chunk's extension of 1 MB": chunked + b"1;" + b"x" * 10**6,
        "a gzipped body": post(CHAT, "Content-Encoding: gzip", "Content-Length: 4") + b"\x1f\x8b\x08\0",
        "10,000 headers": b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        "no HTTP at all": b"\x16\x03\x01" + bytes(range(256)) * 100,
        "another protocol": "\r\n".join(["GET /v1/models HTTP/1.1", *upgrade, "", ""]).encode(),
    }.items():
        yield Rude(name, lambda data=data: [data], SOON)  # type: ignore[misc]


def many() -> Iterator[Rude]:
    """Many small things at once."""
    get = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n"
    yield Rude("500 connections without a word", list, SOON, 500)
    yield Rude("5,000 requests in one write", lambda: [get % b"" * 5000 + get % b"Connection: close\r\n"], PATIENTLY)
    yield Rude("300 requests at once", lambda: [get % b"Connection: close\r\n"], SOON, 300)
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "n": 10**6}).encode()
    yield Rude("300 chats at once that are refused",
               lambda: [post(CHAT, f"Content-Length: {len(body)}", "Connection: close") + body], SOON, 300)  # fmt: skip
