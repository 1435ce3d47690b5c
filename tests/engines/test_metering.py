"""Tests of the meter: what an answer makes engines compute is counted once, whatever became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from waver.engines.base import NO_TOKEN, Engine, Sampling, Step
from waver.engines.metering import Meter, Usage
from waver.policies.report import Report


def engine(name: str, parameters: int, ends: Sequence[int] = ()) -> Engine:
    """An engine that writes 7, 8, 9 ... up to the limit; then what `ends` holds."""

    async def generate(prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        for i in range(sampling.max_tokens):
            yield Step(7 + i, 0.0, 1.0, name)
        for token in ends:
            yield Step(token, 0.0, 1.0, name, finish="gate")

    async def score(ids: Sequence[int], top_logprobs: int = 0) -> list[Step]:
        return [Step(each, 0.0, 1.0, name) for each in ids[1:]]

    made = SimpleNamespace(
        name=name, tokens=None, parameters=parameters, context_length=99, generate=generate, score=score
    )
    return cast(Engine, made)


def run(engine: Engine, ids: Sequence[int], most: int) -> list[int]:
    async def go() -> list[int]:
        return [step.token async for step in engine.generate(ids, Sampling(max_tokens=most))]

    return asyncio.run(go())


def counts(usage: Usage) -> tuple[int, int]:
    return usage.decoded, usage.read


def test_segments_of_one_engine_cost_what_one_run_costs() -> None:
    meter = Meter()
    small = meter.engines({"small": engine("small", 10)})["small"]
    prompt = (1, 2, 3, 4, 5)
    for already in range(4):  # one token at a time, each prompt the one before and its token
        run(small, (*prompt, *range(7, 7 + already)), 1)
    assert counts(meter.usage["small"]) == (4, 4)
    whole = Meter()
    run(whole.engines({"small": engine("small", 10)})["small"], prompt, 4)
    assert counts(whole.usage["small"]) == (4, 4)


def test_a_hand_over_costs_the_tokens_that_the_other_wrote() -> None:
    meter = Meter()
    both = meter.engines({"small": engine("small", 10), "large": engine("large", 30)})
    prompt = (1, 2, 3, 4, 5)
    run(both["small"], prompt, 3)  # writes 7, 8, 9
    run(both["large"], (*prompt, 7, 8, 9), 2)  # reads all, writes 7, 8
    run(both["small"], (*prompt, 7, 8, 9, 7, 8), 1)  # has read up to 8: reads 9, 7, and decodes at 8
    assert counts(meter.usage["large"]) == (2, 7)
    assert counts(meter.usage["small"]) == (4, 4 + 2)


def test_a_gate_that_leaves_a_token_unsampled_has_decoded_it() -> None:
    meter = Meter()
    gated = meter.engines({"small": engine("small", 10, [NO_TOKEN])})["small"]
    run(gated, (1, 2, 3), 2)
    assert counts(meter.usage["small"]) == (3, 2)
    run(gated, (1, 2, 3, 7, 8, 50), 1)  # 8 was read when the gate fired; 50 is decoded at
    assert meter.usage["small"].read == 2


def test_drafts_that_begin_alike_read_what_differs() -> None:
    meter = Meter()
    small = meter.engines({"small": engine("small", 10)})["small"]
    run(small, (1, 2, 3, 4), 1)
    run(small, (1, 2, 3, 40, 50), 1)
    run(small, (1, 2, 3, 4), 1)
    assert counts(meter.usage["small"]) == (3, 3 + 1 + 0)


def test_a_scored_text_is_read_whole() -> None:
    meter = Meter()
    small = meter.engines({"small": engine("small", 10)})["small"]
    asyncio.run(small.score((1, 2, 3, 4)))
    assert counts(meter.usage["small"]) == (0, 4)


def test_what_an_answer_takes_besides_leaves_hand_overs_out() -> None:
    meter = Meter()
    both = meter.engines({"small": engine("small", 10), "large": engine("large", 30)})
    prompt = (1, 2, 3, 4, 5)
    run(both["small"], prompt, 3)
    run(both["large"], (*prompt, 7, 8, 9), 2)
    handed = Report(tokens={"small": 3, "large": 2}, prompt_tokens=5, meter=meter)
    assert (meter.first, handed.besides) == (4 + 5, 0)
    run(both["large"], (50, 51, 52), 2)  # a verdict: three tokens read, the first of two decoded at the last of them
    asyncio.run(both["small"].score((1, 2, 3, 4)))  # a gate reads the prompt again
    assert handed.besides == (2 + 2) + 4
    assert Report(tokens={"small": 3}, discarded=2).besides == 2, "an engine that is not metered"


def report(**usage: Usage) -> Report:
    return Report(
        parameters={"small": 10, "large": 40}, tokens={"small": 8, "large": 2}, prompt_tokens=21,
        meter=Meter(dict(usage), ("large", 40)),
    )  # fmt: skip


def test_the_large_engine_alone_costs_one() -> None:
    alone = Report(
        tokens={"large": 10}, prompt_tokens=21, meter=Meter({"large": Usage(40, 10, 20, 0.5)}, ("large", 40))
    )
    cost = alone.cost()
    assert cost is not None
    assert cost["full"] == cost["decode"] == cost["read"] == 1.0
    assert cost["engines"]["large"] == {"parameters": 40, "decoded": 10, "read": 20, "seconds": 0.5}


def test_the_full_cost_holds_what_is_read_along_and_thrown_away() -> None:
    cost = report(small=Usage(10, 10, 20), large=Usage(40, 2, 25)).cost()
    assert cost is not None
    assert cost["decode"] == pytest.approx((10 * 10 + 2 * 40) / 400)
    assert cost["read"] == pytest.approx((20 * 10 + 25 * 40) / 800)
    assert cost["full"] == pytest.approx((180 + 1200) / 1200)


def test_the_small_engine_alone_is_measured_against_the_large_one() -> None:
    alone = Report(tokens={"small": 10}, prompt_tokens=21, meter=Meter({"small": Usage(10, 10, 20)}, ("large", 40)))
    cost = alone.cost()
    assert cost is not None
    assert (cost["full"], cost["against"]) == (0.25, "large")


def test_nothing_to_compare_with_is_no_cost() -> None:
    empty: dict[str, Any] = Report(parameters={"small": 10}).as_dict()
    assert "cost" not in empty
