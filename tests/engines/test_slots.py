"""The KV cache: cached prefixes are not read again, and shared, evicted or partly read ones stay correct."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import waver.engines.passes
from tests.engines.driving import generated, prompts, tokens
from waver.engines.transformers import TransformersEngine


async def greedy(engine: TransformersEngine, prompt: list[int], length: int = 12) -> list[int]:
    return await tokens(engine, prompt, max_tokens=length, ignore_eos=True)


async def test_a_hand_over_back_reads_only_what_is_missing(load: Callable[..., TransformersEngine]) -> None:
    engine, prompt = load(), prompts(1, seed=9)[0] + list(range(50, 110))
    said = await greedy(engine, prompt, 10)
    assert engine.read_tokens == len(prompt) + 9
    others = [400, 401, 402, 403, 404]  # as another engine would have written them
    ids = [*prompt, *said, *others]
    out = await greedy(engine, ids, 10)
    assert engine.read_tokens == len(ids) + 9
    assert out == generated(engine, ids, 10, ignore_eos=True)


async def test_a_shared_prefix_is_copied(load: Callable[..., TransformersEngine]) -> None:
    engine, prefix = load(), prompts(1, seed=10)[0] + list(range(200, 300))
    rows = [[*prefix, *tail] for tail in prompts(5, seed=11, longest=9)]
    expected = [generated(engine, row, 12, ignore_eos=True) for row in rows]
    assert await greedy(engine, rows[0]) == expected[0]
    before = engine.read_tokens
    assert await asyncio.gather(*(greedy(engine, row) for row in rows[1:])) == expected[1:]
    assert engine.read_tokens - before <= sum(len(row) - len(prefix) + 11 for row in rows[1:])
    # Also from a slot that is in use, and when the one that holds most is not the one that can be gone on with.
    assert await asyncio.gather(*(greedy(engine, [*rows[1], 7, i]) for i in range(8))) == [
        generated(engine, [*rows[1], 7, i], 12, ignore_eos=True) for i in range(8)
    ]


async def test_more_sequences_than_slots(load: Callable[..., TransformersEngine]) -> None:
    engine, asked = load(max_sequences=2), prompts(6, seed=12)
    expected = [generated(engine, prompt, 12, ignore_eos=True) for prompt in asked]
    for _ in range(2):
        assert await asyncio.gather(*(greedy(engine, prompt) for prompt in asked)) == expected
    # Segments of all six in turn: each finds its slot taken by others when it comes back.
    said: list[list[int]] = [[] for _ in asked]
    while len(said[0]) < 12:
        parts = (greedy(engine, [*prompt, *done], 3) for prompt, done in zip(asked, said, strict=True))
        said = [done + part for done, part in zip(said, await asyncio.gather(*parts), strict=True)]
    assert said == expected


async def test_answers_that_have_begun_go_first(load: Callable[..., TransformersEngine]) -> None:
    engine, (prompt, *_) = load(max_sequences=1), prompts(1, seed=13)
    order: list[str] = []

    async def one(name: str, ids: list[int], answer_start: int | None = None) -> None:
        await tokens(engine, ids, max_tokens=5, ignore_eos=True, answer_start=answer_start)
        order.append(name)

    running = asyncio.create_task(one("running", prompt))
    await asyncio.sleep(0)
    new = [asyncio.create_task(one("new", [*prompt, i])) for i in range(3)]
    await asyncio.sleep(0)
    begun = asyncio.create_task(one("begun", [*prompt, 9, 9], len(prompt)))
    await asyncio.gather(running, *new, begun)
    assert order == ["running", "begun", "new", "new", "new"]


@pytest.mark.parametrize("most", [1, 7, 40])
async def test_long_prompts_are_read_in_parts(
    most: int, load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waver.engines.passes, "PASS_TOKENS", most)
    engine, asked = load(), prompts(5, seed=14, longest=120)
    expected = [generated(engine, prompt, 12, ignore_eos=True) for prompt in asked]
    assert await asyncio.gather(*(greedy(engine, prompt) for prompt in asked)) == expected


async def test_a_prompt_in_parts_does_not_hold_up_others(
    load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waver.engines.passes, "PASS_TOKENS", 20)
    engine, long = load(), [5 + i for i in range(200)]
    done: list[int] = []

    async def one(prompt: list[int]) -> None:
        await greedy(engine, prompt, 3)
        done.append(len(prompt))

    await asyncio.gather(one(long), one([5, 6]))
    assert done == [2, 200]
