"""Leaving, failing and closing: work ends within one step, and the engine goes on serving whoever is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing

import pytest
import torch

from tests.engines.driving import prompts, sampling, steps, tokens
from waver.engines.base import EngineError
from waver.engines.transformers import TransformersEngine


async def test_a_hundred_leave(wild: TransformersEngine) -> None:
    rng, asked = random.Random(3), prompts(100, seed=3)
    expected = await tokens(wild, asked[0], max_tokens=30, ignore_eos=True)
    other = asyncio.create_task(tokens(wild, asked[0], max_tokens=150, ignore_eos=True))
    for i in range(100):
        generator = wild.generate(asked[i], sampling(max_tokens=150, ignore_eos=True))
        async with aclosing(generator):
            for _ in range(rng.randrange(4)):
                await anext(generator)
        assert wild.active == (not other.done())
    assert (await other)[:30] == expected
    assert wild.active == 0


async def test_leaving_before_the_first_token(load: Callable[..., TransformersEngine]) -> None:
    engine, asked = load(max_sequences=2), prompts(100, seed=6)
    rng = random.Random(6)

    async def reader(i: int) -> list[int]:
        return await tokens(engine, asked[i], max_tokens=100, ignore_eos=True)

    for i in range(100):  # more wait than there are slots, so some leave before they had one
        readers = [asyncio.create_task(reader((i + j) % 100)) for j in range(4)]
        await asyncio.sleep(rng.choice((0, 0, 0.001, 0.004)))
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        assert engine.active == 0
    passes = engine.passes
    await asyncio.sleep(0.05)
    assert engine.passes - passes <= 1
    assert len(await reader(0)) == 100


async def test_a_failed_pass_fails_only_its_own(
    load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, (a, b, *_) = load(), prompts(4, seed=7)
    expected = await tokens(engine, a, ignore_eos=True)
    extend, broken = engine._runner.extend, True

    def once(slots: list[int], starts: list[int], rows: list[list[int]]) -> torch.Tensor:
        nonlocal broken
        if broken and starts[0] > len(a) + 3:
            broken = False
            extend(slots, starts, rows)
            raise RuntimeError("out of memory")
        return extend(slots, starts, rows)

    monkeypatch.setattr(engine._runner, "extend", once)
    results = await asyncio.gather(*(tokens(engine, p, ignore_eos=True) for p in (a, b)), return_exceptions=True)
    assert [type(result) for result in results] == [EngineError, EngineError]
    assert engine.active == 0
    assert await tokens(engine, a, ignore_eos=True) == expected


async def test_logits_that_are_no_numbers_fail_their_request_alone(
    load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, (a, b, *_) = load(), prompts(4, seed=7)
    expected = await tokens(engine, b, ignore_eos=True)
    extend, read = engine._runner.extend, engine._runner.read

    def overflowing(slots: list[int], starts: list[int], rows: list[list[int]]) -> torch.Tensor:
        logits = extend(slots, starts, rows)
        for row, slot in enumerate(slots):
            if engine._slots.held[slot][: len(a)] == a:
                logits[row, 5] = torch.nan if starts[row] % 2 else torch.inf
        return logits

    monkeypatch.setattr(engine._runner, "extend", overflowing)
    failed, whole = await asyncio.gather(*(tokens(engine, p, ignore_eos=True) for p in (a, b)), return_exceptions=True)
    assert isinstance(failed, EngineError)
    assert "NaN" in str(failed)
    assert whole == expected
    assert engine.active == 0
    monkeypatch.setattr(engine._runner, "read", lambda *given: read(*given) * torch.nan)
    with pytest.raises(EngineError, match="NaN"):
        await engine.score(a)


async def test_close(load: Callable[..., TransformersEngine]) -> None:
    engine, asked = load(), prompts(3, seed=8)
    running = [asyncio.create_task(steps(engine, p, max_tokens=200, ignore_eos=True)) for p in asked]
    await asyncio.sleep(0.02)
    await engine.aclose()
    for result in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(result, EngineError)
    assert engine.active == 0
    for call in (tokens(engine, asked[0]), engine.score(asked[0]), engine.hidden_state(asked[0])):
        with pytest.raises(EngineError, match="closed"):
            await call
    await engine.aclose()


def test_one_engine_serves_one_event_loop_after_another(wild: TransformersEngine) -> None:
    prompt = prompts(1)[0]
    first, second = (asyncio.run(tokens(wild, prompt)) for _ in range(2))
    assert first == second
