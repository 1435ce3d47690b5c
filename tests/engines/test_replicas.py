"""Several servers of one model share its requests, each keeps what it has read, and one that fails is passed over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.engines.test_upstream_trouble import load, steps
from tests.engines.wire import Wire, behave, wired
from waver.engines.base import EngineError
from waver.engines.upstream.replicas import BLOCKS, Prefixes

LONG = [5 + i % 50 for i in range(2 * BLOCKS[int] + 3)]
OTHER = [9 + i % 40 for i in range(2 * BLOCKS[int] + 3)]


@pytest.fixture
def serve() -> Iterator[Callable[..., Wire]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(wired(Wire(**options)))


def asked(*wires: Wire) -> list[int]:
    """Return how many requests each server got since the last call, those of the start left out."""
    counts = [len(wire.seen) for wire in wires]
    for wire in wires:
        wire.seen.clear()
    return counts


async def test_the_next_segment_and_the_next_turn_go_where_the_prompt_was_read(serve: Callable[..., Wire]) -> None:
    one, two = serve(), serve()
    engine = await load(one, replicas=(two.url,))
    asked(one, two)
    assert len(await steps(engine, LONG)) == 4
    assert asked(one, two) == [1, 0]
    for prompt in (LONG, [*LONG, 7, 8], LONG[: BLOCKS[int] + 1]):
        await steps(engine, prompt)
    assert asked(one, two) == [3, 0]
    await engine.aclose()


async def test_load_is_shared(serve: Callable[..., Wire]) -> None:
    async def held(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await behave(wire, body, writer)

    one, two = serve(reply=held), serve(reply=held)
    engine = await load(one, replicas=(two.url,), first_token_timeout=20)
    asked(one, two)
    await asyncio.gather(*(steps(engine, [5, 6, 7 + i]) for i in range(6)))
    assert asked(one, two) == [3, 3]
    # Also where all prompts begin alike: a cache is worth no more than its share.
    await asyncio.gather(*(steps(engine, LONG) for _ in range(6)))
    assert min(asked(one, two)) >= 2
    await engine.aclose()


async def test_one_that_fails_before_the_first_token_is_passed_over(serve: Callable[..., Wire]) -> None:
    one, two = serve(), serve()
    engine = await load(one, replicas=(two.url,), heartbeat_interval=0)
    await steps(engine, LONG)
    asked(one, two)
    one.away = True
    assert len(await steps(engine, LONG)) == 4
    assert asked(one, two)[1] == 1
    for _ in range(200):
        if not engine._client.clients[0].health.alive:
            break
        await asyncio.sleep(0.02)
    assert engine.alive
    assert len(await steps(engine, OTHER)) == 4
    assert asked(one, two) == [0, 1]
    two.away = True
    with pytest.raises(EngineError, match="cannot be reached"):
        await steps(engine, OTHER)
    await engine.aclose()


def test_beginnings_are_remembered_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = Prefixes()
    assert prefixes.blocks(LONG[:10]) == []
    blocks = prefixes.blocks(LONG)
    assert len(blocks) == 2
    assert prefixes.blocks([*LONG, *OTHER])[:2] == blocks
    assert prefixes.blocks([1, *LONG])[0] != blocks[0]
    prefixes.put(blocks, 1)
    prefixes.put(prefixes.blocks([*LONG, *OTHER]), 2)
    assert prefixes.find(blocks) == 2
    assert prefixes.find(prefixes.blocks(OTHER)) is None
    assert len(prefixes.blocks("a" * (2 * BLOCKS[str]))) == 2
    monkeypatch.setattr("waver.engines.upstream.replicas.REMEMBERED", 2)
    prefixes.put(prefixes.blocks(OTHER), 0)
    assert prefixes.find(blocks) is None
    assert prefixes.find(prefixes.blocks(OTHER)) == 0
