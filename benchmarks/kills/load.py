"""Clients that stream answers all the time, and what becomes of each request."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

Outcome = Literal["whole", "error event", "refused", "no connection", "cut off", "silent"]
"""`whole`: the answer ended as it should. `error event`: its stream ended with an error object. `refused`: an error
object with its status, before the first token. `no connection`: nobody accepted it. `cut off`: the connection broke
without a word. `silent`: the stream ended as if it were whole, and was not."""
OUTCOMES: tuple[Outcome, ...] = ("whole", "error event", "refused", "no connection", "cut off", "silent")
PAUSE = 0.1
"""Seconds until a client that got nothing asks again."""


@dataclass
class Seen:
    """Count what became of the requests of one event; times on the monotonic clock."""

    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    wholes: list[tuple[str, float]] = field(default_factory=list)
    """The model and the end of each whole answer."""
    hung: int = 0
    """Requests that took longer than they may."""
    tokens: int = 0
    """Tokens that clients have received."""


class Clients:
    """So many clients, each with one streamed request at a time to one of some models."""

    def __init__(self, url: str, key: str, models: Sequence[str], count: int, patience: float) -> None:
        self._url, self._key, self._models, self._count = url, key, models, count
        self._patience = patience
        self._numbers = itertools.count()
        self.seen = Seen()
        self._stopping = False
        self._answered = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._count)]

    def take(self) -> Seen:
        """Return what was seen since the last time."""
        seen, self.seen = self.seen, Seen()
        return seen

    async def answered(self) -> None:
        """Wait for the next whole answer."""
        self._answered.clear()
        await self._answered.wait()

    async def stop(self) -> None:
        """Let every request end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        model = self._models[number % len(self._models)]
        headers = {"authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=self._patience) as http:
            while not self._stopping:
                began = time.monotonic()
                outcome = await self._ask(http, model)
                now = time.monotonic()
                self.seen.outcomes[outcome] += 1
                self.seen.hung += now - began > self._patience
                if outcome == "whole":
                    self.seen.wholes.append((model, now))
                    self._answered.set()
                else:
                    await asyncio.sleep(PAUSE)

    async def _ask(self, http: httpx.AsyncClient, model: str) -> Outcome:
        body = {"model": model, "policy": [], "prompt": f"Question {next(self._numbers)}: 3 + 4 =", "max_tokens": 40,
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
        try:
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                self.seen.statuses[str(answer.status_code)] += 1
                if answer.status_code != 200:
                    return _refusal(await answer.aread())
                return await self._stream(answer, body["max_tokens"])
        except httpx.ConnectError:
            return "no connection"
        except httpx.HTTPError:
            return "cut off"

    async def _stream(self, answer: httpx.Response, wanted: Any) -> Outcome:
        done, written = False, 0
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return "error event"
            if usage := event.get("usage"):
                written = usage["completion_tokens"]
                self.seen.tokens += usage["total_tokens"]
        return "whole" if done and written == wanted else "silent"


def _refusal(content: bytes) -> Outcome:
    """Return `refused` where an answer is an error object."""
    try:
        return "refused" if json.loads(content)["error"]["message"] else "silent"
    except (ValueError, KeyError, TypeError):
        return "silent"
