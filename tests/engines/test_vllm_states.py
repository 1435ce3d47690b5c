"""vLLM's hidden states are those of the embedded engine, and leave the prompt behind for the answer that follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import torch

from tests.engines.vllm_here import needs_vllm
from waver.engines.base import Sampling, Step, Unsupported
from waver.training.pair.world import draw

pytestmark = [needs_vllm, pytest.mark.timeout(1500)]

BLOCK = 32
"""Tokens of a block of vLLM's cache, whole ones of which are kept."""


async def answer(engine: Any, prompt: list[int], **options: Any) -> list[Step]:
    return [step async for step in engine.generate(prompt, Sampling(**{"max_tokens": 20, **options}))]


@pytest.mark.parametrize("name", ["small", "large"])
def test_the_same_as_the_embedded_engine(vllm_running: Any, name: str) -> None:
    """Of many prompts at once, among answers; in float32 to a ten-thousandth."""
    engines = vllm_running.runtime.engines
    ours, theirs = engines[name], engines[f"embedded-{name}"]
    items = [*draw("arithmetic", 41, 24), *draw("tail_facts", 41, 8)]
    asked = [ours.tokens.chat([{"role": "user", "content": item.prompt}]) for item in items]
    asked += [prompt * 9 for prompt in asked[:4]]

    async def everybody() -> Any:
        answers = asyncio.gather(*(answer(ours, prompt, seed=i) for i, prompt in enumerate(asked[::3])))
        return await asyncio.gather(
            asyncio.gather(*map(ours.hidden_state, asked)), asyncio.gather(*map(theirs.hidden_state, asked)), answers
        )

    mine, others, answers = vllm_running.run(everybody())
    alone = vllm_running.run(answer(ours, asked[0], seed=0))
    assert [step.token for step in answers[0]] == [step.token for step in alone]
    for state, other in zip(mine, others, strict=True):
        assert state.dtype == torch.float32
        assert float((state - other).norm() / other.norm()) < 1e-4
    assert ours.exposes == {"hidden_state"}
    assert ours.active == 0


def test_the_answer_finds_the_question_in_the_cache(vllm_running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe's words behind a question, then others and the answer: as many whole blocks as both share are there."""
    engine, cached = vllm_running.runtime.engines["small"], dict[int, int]()
    outputs = engine._outputs

    async def watched(running: Any, ids: list[int], *args: Any, **options: Any) -> AsyncIterator[Any]:
        async with aclosing(outputs(running, ids, *args, **options)) as arriving:
            async for output in arriving:
                cached[len(ids)] = output.num_cached_tokens or 0
                yield output

    monkeypatch.setattr(engine, "_outputs", watched)
    generator = torch.Generator().manual_seed(6)
    for length in (20, 32, 33, 150):
        question = torch.randint(3, 1270, (length,), generator=generator).tolist()
        probe, other = [*question, 5, 6, 7, 8, 9], [*question, 11, 12, 13]
        vllm_running.run(engine.hidden_state(probe))
        vllm_running.run(answer(engine, other, max_tokens=4))
        assert cached[len(probe)] == 0
        assert cached[len(other)] == length // BLOCK * BLOCK
        # And what comes out of a cached prompt is the same.
        state = vllm_running.run(engine.hidden_state(probe))
        assert cached[len(probe)] == (len(probe) - 1) // BLOCK * BLOCK
        expected = vllm_running.run(vllm_running.runtime.engines["embedded-small"].hidden_state(probe))
        assert float((state - expected).norm() / expected.norm()) < 1e-4


def test_a_state_in_passing(vllm_running: Any) -> None:
    """Of a place within the prompt, with the answer's first step; many at once, among answers that ask for none. Where
    the cache holds that place there is none, and the answer is the same."""
    engines = vllm_running.runtime.engines
    ours, theirs = engines["small"], engines["embedded-small"]
    generator = torch.Generator().manual_seed(7)
    lengths = [20, 40, 100, 300, 20, 40, 100, 300]
    whole = [torch.randint(3, 1270, (length,), generator=generator).tolist() for length in lengths]
    parts = [tuple(ids[:-behind]) for ids, behind in zip(whole, (1, 3, 20, 250, 19, 9, 33, 5), strict=True)]

    async def everybody(states: bool) -> Any:
        return await asyncio.gather(
            *(
                answer(ours, ids, max_tokens=4, seed=i, state_of=part if states else ())
                for i, (ids, part) in enumerate(zip(whole, parts, strict=True))
            ),
            *(answer(ours, [*ids[::-1], 5], max_tokens=4) for ids in whole[:4]),
        )

    told = vllm_running.run(everybody(states=True))
    for made, part in zip(told, parts, strict=False):
        expected = vllm_running.run(theirs.hidden_state(part))
        assert made[0].state is not None
        assert float((made[0].state - expected).norm() / expected.norm()) < 1e-4
    assert not any(step.state is not None for made in told for step in made[1:])
    again = vllm_running.run(everybody(states=True))
    for made, ids, part in zip(again, whole, parts, strict=False):
        assert (made[0].state is None) == ((len(ids) - 1) // BLOCK * BLOCK >= len(part))
    for made, plain in zip(again, vllm_running.run(everybody(states=False)), strict=True):
        assert [step.token for step in made] == [step.token for step in plain]
    later = vllm_running.run(answer(ours, [*whole[0], 9], answer_start=len(whole[0]), state_of=parts[0], max_tokens=3))
    assert later[0].state is None


def test_what_vllm_does_not_hand_out(vllm_running: Any) -> None:
    engine = vllm_running.runtime.engines["small"]
    for ids, depth, says in (([5], 0.5, "the last hidden state only"), ([], None, "empty"), ([5] * 5000, None, "5000")):
        with pytest.raises(Unsupported, match=says):
            vllm_running.run(engine.hidden_state(ids, depth))
    assert engine.active == 0


def test_leaving_frees_the_row(vllm_running: Any) -> None:
    engine = vllm_running.runtime.engines["small"]
    rows = len(engine.model._slots)

    async def leave() -> None:
        readings = [asyncio.create_task(engine.hidden_state([*range(5, 300), i])) for i in range(5, 45)]
        await asyncio.sleep(0.01)
        assert engine.active == 40
        for reading in readings:
            reading.cancel()
        await asyncio.gather(*readings, return_exceptions=True)

    vllm_running.run(leave())
    assert engine.active == 0
    assert len(engine.model._slots) == rows
    assert len(vllm_running.run(engine.hidden_state([5, 6, 7]))) > 0
