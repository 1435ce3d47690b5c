"""Two kinds of much work: a soak, long and even, and an overload of several times what a server takes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import Any

import httpx

from waver.benchmarks.faults.probe import watching
from waver.benchmarks.processes import quarters, resident

QUESTIONS = [f"What is {a} + {b}?" for a, b in itertools.product(range(3, 60, 7), range(4, 60, 9))]
WAYS: tuple[dict[str, Any], ...] = (
    {"model": "small", "policy": []},
    {"model": "large", "policy": []},
    {
        "model": "large",
        "policy": [
            {"name": "ead", "small": "small", "large": "large", "threshold": 0.05, "window": 1, "min_tokens": 1}
        ],
    },
    {"model": "small", "policy": [{"name": "top_p", "p": 0.9}], "n": 2},
)


def question(number: int) -> dict[str, Any]:
    """One of a few hundred seeded requests at temperature 1, so that each is asked many times over."""
    ask, way = QUESTIONS[number % len(QUESTIONS)], WAYS[number % len(WAYS)]
    return {
        "messages": [{"role": "user", "content": ask}], "max_tokens": 48, "temperature": 1.0, "seed": 7, **way,
    }  # fmt: skip


async def soak(url: str, process: int, seconds: float, clients: int) -> dict[str, Any]:
    """Ask from so many clients for so long; answers, failures, memory, and replays that came out differently."""
    answers: dict[int, set[str]] = {}
    statuses: Counter[str] = Counter()
    replays, memory = 0, [resident(process)]
    numbers, end = itertools.count(), time.monotonic() + seconds

    async def client() -> None:
        nonlocal replays
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            while time.monotonic() < end:
                number = next(numbers) % (len(QUESTIONS) * len(WAYS))
                try:
                    answer = await http.post("/v1/chat/completions", json=question(number))
                except httpx.HTTPError as error:
                    statuses[type(error).__name__] += 1
                    continue
                statuses[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    said = str([choice["message"]["content"] for choice in answer.json()["choices"]])
                    replays += number in answers
                    answers.setdefault(number, set()).add(said)

    async def weigh() -> None:
        while True:
            await asyncio.sleep(max(seconds / 40, 1))
            memory.append(resident(process))

    weighing = asyncio.create_task(weigh())
    await asyncio.gather(*(client() for _ in range(clients)))
    weighing.cancel()
    early, late = quarters(memory)
    return {
        "seconds": seconds, "clients": clients, "statuses": dict(statuses), "answers": statuses["200"],
        "replays": replays, "different": sum(len(said) - 1 for said in answers.values()),
        "memory_early": early, "memory_late": late,
    }  # fmt: skip


async def overload(url: str, room: int, times: int) -> dict[str, Any]:
    """Ask `times` as many questions at once as run and wait together; statuses, and how long health checks took."""
    statuses: Counter[str] = Counter()
    hints = 0

    async def one(http: httpx.AsyncClient, number: int) -> None:
        nonlocal hints
        try:
            answer = await http.post("/v1/chat/completions", json={**question(number), "max_tokens": 200})
        except httpx.HTTPError as error:
            statuses[type(error).__name__] += 1
            return
        statuses[str(answer.status_code)] += 1
        hints += answer.status_code == 429 and "retry-after" in answer.headers

    limits = httpx.Limits(max_connections=None)
    async with watching(url, "health") as other, httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        await other.take()
        await asyncio.gather(*(one(http, number) for number in range(times * room)))
        seen = await other.take()
    checks = sorted(seen.checks)
    return {
        "times": times, "room": room, "statuses": dict(statuses), "hints": hints,
        "health_checks": len(checks), "health_failures": seen.failures,
        "health_p50": checks[len(checks) // 2], "health_p99": checks[int(len(checks) * 0.99)],
        "health_most": checks[-1],
    }  # fmt: skip
