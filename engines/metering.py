"""Meter what one answer makes engines compute: tokens decoded, tokens read, and the seconds waited for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import torch

from waver.engines.base import NO_TOKEN, Engine, Inside, Sampling, Step
from waver.tracing import span

REMEMBERED = 16
"""Sequences of one answer that are remembered of each engine, to tell what it has read before."""


@dataclass
class Usage:
    """Count what one engine computed for one answer.

    `decoded` counts passes that gave a next-token distribution, kept or not: tokens written, drafts, samples, tokens
    read along by a watching engine. `read` counts the other tokens that were read: prompts, passages, and what another
    engine had written. A pass over a token costs the same in both. `seconds` is how long the answer waited for steps,
    `parameters` the engine's parameter count.
    """

    parameters: int = 0
    decoded: int = 0
    read: int = 0
    seconds: float = 0.0

    def add(self, other: Usage) -> None:
        """Add what the same engine computed elsewhere."""
        self.parameters = other.parameters
        self.decoded += other.decoded
        self.read += other.read
        self.seconds += other.seconds


@dataclass
class Meter:
    """The usage of one answer, by engine.

    A token counts as read once for each engine, however often segments of the answer begin with it. What an engine had
    kept from other requests, or shares among the choices of one, is not known here: such tokens count as read.
    """

    usage: dict[str, Usage] = field(default_factory=dict)
    largest: tuple[str, int] = ("", 0)
    """The engine with the most parameters, and their count."""
    gates: Counter[str] = field(default_factory=Counter)
    """Segments that ended because their gate fired, by engine."""
    first: int = 0
    """Tokens that were decoded, or read by no engine before: what a hand-over makes another engine read again is left
    out."""
    _held: dict[str, list[tuple[int, ...]]] = field(default_factory=dict, repr=False)

    def engines(self, engines: Mapping[str, Engine]) -> dict[str, Engine]:
        """Return the engines so that what they compute is counted here."""
        counts = [(name, each.parameters) for name, each in engines.items()]
        self.largest = max(counts, key=lambda each: each[1], default=("", 0))
        return {name: MeteredEngine(engine, self) for name, engine in engines.items()}

    def of(self, engine: str, parameters: int = 0) -> Usage:
        """Return the usage of an engine, to be added to."""
        return self.usage.setdefault(engine, Usage(parameters))

    @property
    def spent(self) -> tuple[int, int]:
        """Return what engines computed, in parameters times tokens: tokens decoded, and others read."""
        used = self.usage.values()
        return sum(each.decoded * each.parameters for each in used), sum(each.read * each.parameters for each in used)

    def unread(self, engine: str, ids: tuple[int, ...]) -> tuple[int, int]:
        """Count the tokens of a prompt that an engine has not read for this answer, and those that none has."""
        left = {name: self._unread(held, ids) for name, held in self._held.items()}
        return left.get(engine, len(ids)), min(left.values(), default=len(ids))

    def _unread(self, sequences: Sequence[tuple[int, ...]], ids: tuple[int, ...]) -> int:
        longest = 0
        for held in reversed(sequences):
            longest = max(longest, _common(held, ids))
            if longest >= len(ids) - 1:
                break
        return len(ids) - longest

    def hold(self, engine: str, ids: tuple[int, ...]) -> None:
        """Remember that an engine has read these tokens."""
        held = self._held.setdefault(engine, [])
        held[:] = [each for each in held if ids[: len(each)] != each][-REMEMBERED + 1 :]
        held.append(ids)


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Count the tokens with which both begin."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return low


def unmetered(engine: Engine) -> Engine:
    """Return the engine itself: what is known of it is kept by that, as each answer has a metered one of its own."""
    return engine.metered if isinstance(engine, MeteredEngine) else engine


class MeteredEngine:
    """An engine whose work for one answer is counted by a `Meter`; otherwise it is the engine itself."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        self.metered, self._meter = engine, meter
        self.name, self.tokens = engine.name, engine.tokens
        self.parameters, self.context_length = engine.parameters, engine.context_length

    def __getattr__(self, name: str) -> Any:
        return getattr(self.metered, name)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        ids, usage = tuple(prompt_ids), self._meter.of(self.name, self.parameters)
        tokens: list[int] = []
        passes = longer = 0
        with span("segment", {"waver.engine": self.name, "waver.prompt_tokens": len(ids)}) as segment:
            began = time.perf_counter()
            try:
                async with aclosing(self.metered.generate(prompt_ids, sampling)) as steps:
                    async for step in steps:
                        usage.seconds += time.perf_counter() - began
                        passes += 1
                        if step.prompt_tokens is not None:
                            longer = step.prompt_tokens - len(ids)
                        if step.token != NO_TOKEN:
                            tokens.append(step.token)
                        if step.finish is not None:
                            segment.note("waver.finish", step.finish)
                            self._meter.gates[self.name] += step.finish == "gate"
                        yield step
                        began = time.perf_counter()
            finally:
                segment.note("waver.tokens", len(tokens))
                if passes:  # the pass over the prompt's last token decodes the first token
                    unread, first = self._meter.unread(self.name, ids)
                    self._meter.first += len(tokens) + max(first - 1, 0)
                    usage.decoded += passes
                    usage.read += max(unread + longer - 1, 0)
                    self._meter.hold(self.name, (*ids, *tokens[: passes - 1]))

    async def score(self, ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        with _Read(self._meter, self.name, self.parameters, ids):
            return await self.metered.score(ids, top_logprobs)

    async def hidden_state(self, ids: Sequence[int], depth: float | None = None) -> torch.Tensor:
        with _Read(self._meter, self.name, self.parameters, ids):
            return await self.metered.hidden_state(ids, depth)

    async def attention(self, ids: Sequence[int], start: int) -> torch.Tensor:
        with _Read(self._meter, self.name, self.parameters, ids):
            return await self.metered.attention(ids, start)

    def check(self, sampling: Sampling, begun: bool) -> None:
        self.metered.check(sampling, begun)

    @property
    def exposes(self) -> frozenset[Inside]:
        return self.metered.exposes

    def embedding_matrix(self) -> torch.Tensor:
        return self.metered.embedding_matrix()

    @property
    def active(self) -> int:
        return self.metered.active

    @property
    def alive(self) -> bool:
        return self.metered.alive

    async def aclose(self) -> None:
        await self.metered.aclose()


@dataclass
class _Read:
    """Count a text that is read whole, apart from segments of the answer: nothing of it is kept."""

    meter: Meter
    engine: str
    parameters: int
    ids: Sequence[int]

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: object, *error: object) -> None:
        usage = self.meter.of(self.engine, self.parameters)
        usage.seconds += time.perf_counter() - self._began
        if kind is None:
            usage.read += len(self.ids)
            self.meter.first += len(self.ids)
