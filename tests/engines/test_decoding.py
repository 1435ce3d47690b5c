"""Greedy decoding is `model.generate`, and a seed is a seed: alone, in company, and cut into segments."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.driving import generated, prompts, steps, tokens
from waver.engines.transformers import TransformersEngine
from waver.training.pair.world import draw


def questions(engine: TransformersEngine) -> list[list[int]]:
    """A hundred prompts: sums, facts, and facts with the passage that holds them."""
    items = [item for task in ("arithmetic", "frequent_facts", "rare_facts") for item in draw(task, 11, 25)]
    texts = [item.prompt for item in items] + [item.open_book for item in draw("tail_facts", 11, 25)]
    return [engine.tokens.chat([{"role": "user", "content": text}]) for text in texts]


async def test_greedy_is_generate(small: TransformersEngine) -> None:
    asked = questions(small)
    expected = [generated(small, prompt, 32) for prompt in asked]
    assert len(asked) == 100
    assert [await tokens(small, prompt, max_tokens=32) for prompt in asked[::4]] == expected[::4]

    async def later(i: int) -> list[int]:
        await asyncio.sleep(0.01 * (i % 17))
        return await tokens(small, asked[i], max_tokens=32)

    assert await asyncio.gather(*(later(i) for i in range(100))) == expected


async def test_finish(wild: TransformersEngine, small: TransformersEngine) -> None:
    prompt = prompts(1)[0]
    out = await steps(wild, prompt, max_tokens=7, ignore_eos=True)
    assert [step.finish for step in out] == [None] * 6 + ["length"]
    out = await steps(small, questions(small)[0], max_tokens=200)
    assert out[-1].token in small.tokens.eos_ids
    assert [step.finish for step in out] == [None] * (len(out) - 1) + ["stop"]
    stop = (await tokens(wild, prompt, ignore_eos=True))[5]
    out = await steps(wild, prompt, ignore_eos=True, stop_token_ids=(stop,))
    assert out[-1].token == stop
    assert out[-1].finish == "stop"


async def test_the_context_is_the_limit(wild: TransformersEngine) -> None:
    prompt = prompts(1)[0] * wild.context_length
    out = await steps(wild, prompt[: wild.context_length - 5], max_tokens=50, ignore_eos=True)
    assert (len(out), out[-1].finish) == (5, "length")
    # One sequence at the very end of the context beside shorter ones that read several tokens at a time.
    rows = (prompt[: wild.context_length - 20 + i] for i in (0, 3, 18))
    together = await asyncio.gather(*(steps(wild, row, max_tokens=50, ignore_eos=True) for row in rows))
    assert [len(out) for out in together] == [20, 17, 2]


async def test_padding_of_the_output_layer_is_never_drawn(wild: TransformersEngine) -> None:
    drawn = await asyncio.gather(
        *(tokens(wild, p, temperature=20.0, seed=i, max_tokens=60, ignore_eos=True) for i, p in enumerate(prompts(40)))
    )
    seen = {token for row in drawn for token in row}
    assert len(seen) > 900
    assert max(seen) < wild.tokens.vocab_size < wild.vocabulary


HOWS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 40, "min_p": 0.01, "presence_penalty": 0.5},
    {"temperature": 1.0, "frequency_penalty": 0.8, "repetition_penalty": 1.2},
    {"temperature": 1.2, "min_tokens": 20, "logit_bias": {2: 6.0, 77: 2.0}},
)


async def test_a_seed_does_not_depend_on_company(wild: TransformersEngine) -> None:
    asked = prompts(20, seed=1)

    async def one(i: int) -> list[int]:
        return await tokens(wild, asked[i], seed=1000 + i, max_tokens=30, **HOWS[i % len(HOWS)])

    alone = [await one(i) for i in range(20)]
    together = await asyncio.gather(*(one(i) for i in reversed(range(20))))
    assert list(reversed(together)) == alone


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(how=st.sampled_from(HOWS), seed=st.integers(0, 2**63), cuts=st.sets(st.integers(1, 29), max_size=6))
def test_cuts_do_not_show(wild: TransformersEngine, how: dict[str, Any], seed: int, cuts: set[int]) -> None:
    prompt = prompts(1, seed=2)[0]

    async def segments() -> tuple[list[int], list[int]]:
        whole = await tokens(wild, prompt, seed=seed, max_tokens=30, **how)
        said: list[int] = []
        for cut in (*sorted(cuts), 30):
            part = await steps(wild, [*prompt, *said], seed=seed, max_tokens=cut, answer_start=len(prompt), **how)
            said += [step.token for step in part]
            if part[-1].finish == "stop":
                break
        return whole, said

    whole, said = asyncio.run(segments())
    assert said == whole


async def test_min_tokens_keeps_the_end_away(wild: TransformersEngine) -> None:
    eager = {"logit_bias": {2: 100.0}}
    assert await tokens(wild, prompts(1)[0], **eager) == [2]
    out = await tokens(wild, prompts(1)[0], min_tokens=9, **eager)
    assert len(out) == 10
    assert out.index(2) == 9
