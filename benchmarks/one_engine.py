"""Run policies on one engine in this process, without a server."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from waver import job as folder
from waver.concurrency import together
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine, Sampling
from waver.policies.job import Job, UserTurn
from waver.policies.report import Report
from waver.policies.services import Services

UNBOUNDED = 2**31


class OneEngine:
    """An engine and what policies find beside it: no collections, and tokens without end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.services = Services({engine.name: engine}, extra_tokens=UNBOUNDED)

    def job(self, words: str, max_tokens: int, temperature: float, seed: int) -> Job:
        """Make the job of a user's message."""
        tokens, message = self.engine.tokens, {"role": "user", "content": words}
        turn = UserTurn(words, lambda more: tokens.chat([{"role": "user", "content": more + words}]))
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
        found = Report(parameters={self.engine.name: self.engine.parameters})
        ids = tuple(tokens.chat([message]))
        return Job(ids, sampling, self.engine.name, self.services, found, turn, (message,))


async def keep(
    file: Path,
    makers: Iterable[Callable[[], Awaitable[Mapping[str, Any]]]],
    advance: Callable[[], None],
    at_once: int,
    until: float = math.inf,
) -> None:
    """Append a line for each maker to a file, so that a stopped run goes on.

    Args:
        advance: called after each line.
        at_once: how many are made at a time.
        until: of `time.monotonic` (seconds), after which none is begun.
    """
    free = asyncio.Semaphore(at_once)

    async def one(make: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        async with free:
            if time.monotonic() < until:
                folder.append_line(file, await make())
                advance()

    await together(*map(one, makers))


@asynccontextmanager
async def opened(model: str, dtype: str, sequences: int) -> AsyncIterator[OneEngine]:
    """Load a model, and let it go at the end.

    Args:
        sequences: the most that it decodes together.
    """
    engine = load_engine("model", TransformersConfig(model=model, dtype=dtype, max_sequences=sequences))
    try:
        yield OneEngine(engine)
    finally:
        await engine.aclose()
