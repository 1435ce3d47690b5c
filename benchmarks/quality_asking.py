"""Ask a server every question in every way that is compared, and keep the answers.

Answers are lines of `answers.jsonl` in the working folder, by peer and question, so that a stopped run goes on, and one
with more questions or more peers asks for those alone. Peers take turns: each has a block of questions before the next
one has the same, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from waver import job
from waver.benchmarks.processes import free_port, running
from waver.benchmarks.quality_peers import Peer
from waver.benchmarks.quality_tasks import Item, is_right
from waver.clients.chat import explain
from waver.clients.client import AsyncWaver, has_report, report
from waver.clients.questions import Refused
from waver.concurrency import together
from waver.python_tests import Runner

ANSWERS = "answers.jsonl"
START = 1800.0
"""Seconds that a server may take to load its models, and a request to be answered."""

Line = dict[str, Any]
Known = dict[tuple[str, int], Line]
"""Answers by the key of the peer and the line of the question."""


@dataclass(frozen=True)
class Requests:
    """Fields that all requests share."""

    instruction: str
    temperature: float
    max_tokens: int
    seed: int
    at_once: int

    def fields(self, peer: Peer, line: int) -> dict[str, Any]:
        own = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed + line}
        return own | dict(peer.options)


@dataclass(frozen=True)
class Asking:
    """A server under questions."""

    client: AsyncWaver
    base_url: str
    requests: Requests
    out: Path
    known: Known
    runner: Runner = field(default_factory=Runner)

    def left(self, peers: Sequence[Peer], items: Sequence[Item]) -> int:
        """Count the answers that are not there."""
        return sum((peer.key, item.line) not in self.known for peer in peers for item in items)

    async def all(self, peers: Sequence[Peer], items: Sequence[Item], done: Callable[[], None]) -> None:
        """Ask for what is not known, block by block, the peers in turns; which one goes first in a block rotates.

        Raises:
            openai.OpenAIError: the server cannot answer. Refused: it refuses a peer.
        """
        size = max(2 * self.requests.at_once, 8)
        for block, start in enumerate(range(0, len(items), size)):
            first = block % len(peers)
            for peer in (*peers[first:], *peers[:first]):
                await self._block(peer, items[start : start + size], done)

    async def _block(self, peer: Peer, items: Sequence[Item], done: Callable[[], None]) -> None:
        free = asyncio.Semaphore(self.requests.at_once)

        async def one(item: Item) -> None:
            async with free:
                line = await self.ask(peer, item)
            job.append_line(self.out / ANSWERS, line)
            self.known[peer.key, item.line] = line
            done()

        await together(*(one(item) for item in items if (peer.key, item.line) not in self.known))

    async def ask(self, peer: Peer, item: Item) -> Line:
        """Ask one question; a prompt that is too long for a model is a wrong answer, and the line says so."""
        began = time.time()
        try:
            response = await self.client.chat.completions.create(
                model=peer.model,
                messages=[{"role": "user", "content": item.asked(self.requests.instruction)}],
                extra_body=peer.body,
                **self.requests.fields(peer, item.line),
            )
        except (openai.BadRequestError, openai.NotFoundError, openai.UnprocessableEntityError) as error:
            if error.code != "context_length_exceeded":
                raise Refused(f"{peer.name}, line {item.line}: {explain(error, self.base_url)}") from None
            refused = {"error": str(error.code), "right": False, "text": "", "began": began, "seconds": 0.0}
            return {"peer": peer.key, "line": item.line, **refused, **spent(None)}
        seconds = time.time() - began
        choice = response.choices[0]
        text = choice.message.content or ""
        return {
            "peer": peer.key,
            "name": peer.name,
            "line": item.line,
            "right": await is_right(item, text, self.runner),
            "finish": choice.finish_reason,
            "began": round(began, 3),
            "seconds": round(seconds, 4),
            **spent(response),
            "text": text,
            "server": response.system_fingerprint,
        }


def spent(response: Any) -> dict[str, Any]:
    """Return what an answer took: its tokens by engine, what engines computed (parameter-weighted tokens, decoded and
    read) and the seconds in each. Servers other than Waver tell the number of tokens alone."""
    if response is None:
        return {"tokens": {}, "decode": 0, "read": 0, "engine_seconds": {}, "switches": 0, "discarded": 0}
    if not has_report(response):
        usage = response.usage
        return {"tokens": {response.model: usage.completion_tokens if usage else 0}, "decode": None, "read": None,
                "engine_seconds": {}, "switches": 0, "discarded": 0}  # fmt: skip
    told = report(response)
    used = told.cost.engines if told.cost else {}
    decode, read = told.cost.spent if told.cost else (None, None)
    return {
        "tokens": told.tokens,
        "decode": decode,
        "read": read,
        "engine_seconds": {name: round(each.seconds, 4) for name, each in used.items()},
        "switches": told.switches,
        "discarded": told.discarded_tokens,
    }


def read_known(out: Path) -> Known:
    """Read the answers that are there."""
    return {(line["peer"], line["line"]): line for line in job.read_lines(out / ANSWERS)}


def busy(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds in which at least one of these requests was in the air: the wall clock, without the time in
    which others had their turn or nothing ran."""
    spans = sorted((line["began"], line["began"] + line["seconds"]) for line in lines)
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total


@contextmanager
def server_at(base_url: str | None, config: Path | None) -> Iterator[tuple[str, str | None]]:
    """Yield the address (with /v1) and key of a server: the one that is named, with the key in WAVER_API_KEY, or one
    that is started for the while.

    Raises:
        Refused: it does not start.
    """
    key = os.environ.get("WAVER_API_KEY")
    if base_url is not None:
        yield base_url.rstrip("/"), key
        return
    port = free_port()
    command = [sys.executable, "-m", "waver", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--timeout", str(START)]
    command += [] if config is None else ["--config", str(config)]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        try:
            stack.enter_context(running(command, Path(scratch) / "log", f"{url}/ready", START))
        except RuntimeError as error:
            raise Refused(f"The server does not start. {error}") from None
        yield f"{url}/v1", key
