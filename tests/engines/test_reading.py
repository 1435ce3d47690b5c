"""Hidden states are read in the slots that answers are decoded in: together, and so that an answer can go on there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

import waver.engines.passes
from tests.conftest import until
from tests.engines.driving import generated, plain_state, prompts, steps, tokens
from waver.engines.base import EngineError
from waver.engines.transformers import TransformersEngine

DEPTHS = (None, 0.0, 0.5, 1.0)


def agree(states: list[torch.Tensor], engine: TransformersEngine, asked: list[tuple[list[int], float | None]]) -> None:
    assert len(states) == len(asked)
    for state, (ids, depth) in zip(states, asked, strict=True):
        assert state.dtype == torch.float32
        torch.testing.assert_close(state, plain_state(engine, ids, depth), atol=1e-5, rtol=1e-5)


async def test_many_are_read_in_one_pass(load: Callable[..., TransformersEngine]) -> None:
    engine = load()
    asked = [(ids, DEPTHS[i % 4]) for i, ids in enumerate(prompts(9, seed=20))]
    states = await asyncio.gather(*(engine.hidden_state(ids, depth) for ids, depth in asked))
    assert engine.passes == 1
    assert engine.read_tokens == sum(len(ids) for ids, _ in asked)
    agree(states, engine, asked)


async def test_more_than_there_are_slots_beside_answers(load: Callable[..., TransformersEngine]) -> None:
    engine = load(max_sequences=3)
    asked = [(ids, DEPTHS[i % 4]) for i, ids in enumerate(prompts(12, seed=21))]
    answers = [prompts(12, seed=22)[i] for i in range(4)]
    everything = await asyncio.gather(
        *(tokens(engine, prompt, max_tokens=20, ignore_eos=True) for prompt in answers),
        *(engine.hidden_state(ids, depth) for ids, depth in asked),
    )
    assert everything[:4] == [generated(engine, prompt, 20, ignore_eos=True) for prompt in answers]
    agree(everything[4:], engine, asked)


@pytest.mark.parametrize("most", [1, 7, 40])
async def test_long_prompts_are_read_in_parts(
    most: int, load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waver.engines.passes, "PASS_TOKENS", most)
    engine = load()
    asked = [(ids, DEPTHS[i]) for i, ids in enumerate(prompts(4, seed=23, longest=120))]
    agree(await asyncio.gather(*(engine.hidden_state(ids, depth) for ids, depth in asked)), engine, asked)


@pytest.mark.parametrize("length", [12, 150])
async def test_the_question_is_read_once(length: int, load: Callable[..., TransformersEngine]) -> None:
    """A probe's words behind a question, then other words behind it and the answer: whether the prefix is short or not,
    the answer reads what is new to it alone; and so it is with many questions at once."""
    engine = load()
    questions = [[100 + 7 * i + j for j in range(length)] for i in range(6)]
    probe, other = [5, 6, 7, 8], [9, 10, 11]

    async def one(question: list[int]) -> list[int]:
        await engine.hidden_state([*question, *probe])
        return await tokens(engine, [*question, *other], max_tokens=8, ignore_eos=True)

    answers = await asyncio.gather(*map(one, questions))
    assert answers == [generated(engine, [*question, *other], 8, ignore_eos=True) for question in questions]
    assert engine.reused_tokens == 6 * length
    assert engine.read_tokens == 6 * (length + len(probe) + len(other) + 7)


async def test_an_answer_that_another_engine_goes_on_with_keeps_its_slot(
    load: Callable[..., TransformersEngine],
) -> None:
    """Only what a reading left is written over; an answer's slot is kept for who comes back."""
    engine, prompt = load(), list(range(100, 200))
    said = await tokens(engine, prompt, max_tokens=10, ignore_eos=True)
    await engine.hidden_state([*prompt[:90], 7])
    before = engine.read_tokens
    await tokens(engine, [*prompt, *said, 5], max_tokens=1)
    assert engine.read_tokens - before == 2  # the last one drawn was never read


async def test_leaving_ends_the_reading(
    load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waver.engines.passes, "PASS_TOKENS", 4)
    engine = load(max_sequences=2)
    readings = [asyncio.create_task(engine.hidden_state([5 + i, *range(6, 206)])) for i in range(6)]
    await asyncio.to_thread(until, lambda: engine.passes > 0, "the first pass")
    assert engine.active == 6
    for reading in readings:
        reading.cancel()
    await asyncio.gather(*readings, return_exceptions=True)
    assert engine.active == 0
    passes = engine.passes
    await asyncio.sleep(0.05)
    assert engine.passes - passes <= 1
    asked = [([5, 6, 7], None)]
    agree([await engine.hidden_state(*asked[0])], engine, asked)


async def test_a_reading_that_fails_fails_no_answer(
    load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, (prompt, other, *_) = load(), prompts(4, seed=25)

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    answer = asyncio.create_task(tokens(engine, prompt, max_tokens=20, ignore_eos=True))
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "states", broken)
        with pytest.raises(EngineError, match="failed: RuntimeError"):
            await engine.hidden_state(other)
    assert await answer == generated(engine, prompt, 20, ignore_eos=True)
    agree([await engine.hidden_state(other)], engine, [(other, None)])


async def test_closing_tells_who_waits(
    load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waver.engines.passes, "PASS_TOKENS", 1)
    engine = load()
    reading = asyncio.create_task(engine.hidden_state(list(range(5, 205))))
    await asyncio.to_thread(until, lambda: engine.passes > 0, "the first pass")
    await engine.aclose()
    with pytest.raises(EngineError, match="closed"):
        await reading


@pytest.mark.parametrize("most", [2048, 7])
async def test_a_state_in_passing(
    most: int, load: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a place within the prompt, with the answer's first step, in the passes that the answer takes anyway."""
    monkeypatch.setattr(waver.engines.passes, "PASS_TOKENS", most)
    engine, asked = load(), prompts(12, seed=26, longest=80)
    alone = load()
    whole = await asyncio.gather(*(steps(alone, ids, max_tokens=4, ignore_eos=True) for ids in asked))
    told = await asyncio.gather(
        *(
            steps(engine, ids, max_tokens=4, ignore_eos=True, state_of=tuple(ids[: 1 + i * len(ids) // 12]))
            for i, ids in enumerate(asked)
        )
    )
    assert told == whole
    assert (engine.passes, engine.read_tokens) == (alone.passes, alone.read_tokens)
    begun = [(ids[: 1 + i * len(ids) // 12], None) for i, ids in enumerate(asked)]
    agree([made[0].state for made in told], engine, begun)  # type: ignore[misc]
    assert not any(step.state is not None for made in told for step in made[1:])


async def test_a_state_that_no_pass_reads_does_not_come(load: Callable[..., TransformersEngine]) -> None:
    engine, (prompt, other) = load(), prompts(2, seed=27, longest=80)
    (first,) = await steps(engine, prompt, max_tokens=1, state_of=tuple(other))
    assert first.state is None, "it is no beginning of the prompt"
    (again,) = await steps(engine, [*prompt, 5], max_tokens=1, state_of=tuple(prompt))
    assert again.state is None, "its slot holds it already"
    segment = [*other, 7, 8]
    options = {"max_tokens": 3, "answer_start": len(other), "state_of": tuple(other)}
    assert (await steps(engine, segment, **options))[0].state is None, "the answer's first segment is another"
