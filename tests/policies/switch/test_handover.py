"""Invariants of a hand-over: with the same model on both sides, a switching policy changes only the writer's name."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine, Sampling, Step
from waver.engines.transforms import AdaptiveTemperature
from waver.policies.base import Policy, Proceed
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.services import Services
from waver.policies.switch.cascade import Cascade
from waver.policies.switch.ead import EntropyAdaptiveDecoding
from waver.policies.switch.random_switch import RandomSwitch
from waver.policies.switch.route import Route
from waver.training.pair.world import draw

MODEL = str(Path(__file__).parents[3] / "models" / "small")
SWITCHING = [
    EntropyAdaptiveDecoding(threshold=0.02, window=1, min_tokens=1),
    EntropyAdaptiveDecoding(threshold=0.02, window=3, min_tokens=2, timing="lagged"),
    EntropyAdaptiveDecoding(threshold=0.02, window=2, min_tokens=1, monitor="small"),
    EntropyAdaptiveDecoding(threshold=0.02, window=2, min_tokens=1, monitor="small", timing="lagged", start="large"),
    RandomSwitch(rate=0.5),
    Route(threshold=0.01, draft_tokens=5),
    Cascade(threshold=0.01),
]
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.5, "seed": 11},
    "truncated": {"temperature": 2.0, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 12},
    "adapted": {"temperature": 1.5, "seed": 16, "transforms": (AdaptiveTemperature(span=0.3, low=1e-4, pivot=0.1),)},
    "penalised": {
        "temperature": 1.2,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.1,
        "seed": 13,
    },
    "bounded": {"temperature": 1.0, "min_tokens": 30, "logit_bias": {17: 3.0, 20: -100.0}, "seed": 14},
    "ignore_eos": {"temperature": 1.0, "ignore_eos": True, "seed": 15},
}


@pytest.fixture
async def twins() -> AsyncIterator[dict[str, Engine]]:
    """The same model twice, under two names."""
    engines = {name: load_engine(name, TransformersConfig(model=MODEL)) for name in ("small", "large")}
    yield engines
    for engine in engines.values():
        await engine.aclose()


def job(engines: dict[str, Engine], question: str, sampling: Sampling) -> Job:
    prompt = engines["small"].tokens.chat([{"role": "user", "content": question}])
    report = Report(parameters={name: engine.parameters for name, engine in engines.items()})
    return Job(tuple(prompt), sampling, "small", Services(engines), report)


async def run(policies: list[Policy], work: Job) -> list[Step]:
    async with aclosing(Proceed(tuple(policies))(work)) as steps:
        return [step async for step in steps]


@pytest.mark.parametrize("options", SAMPLINGS.values(), ids=SAMPLINGS)
async def test_switching_between_twins_changes_nothing(twins: dict[str, Engine], options: dict[str, object]) -> None:
    sampling = Sampling(max_tokens=40, top_logprobs=3, **options)  # type: ignore[arg-type]
    questions = [item.prompt for item in draw("arithmetic", 21, 3)] + [draw("tail_facts", 21, 1)[0].prompt]
    plain = await asyncio.gather(*(run([], job(twins, q, sampling)) for q in questions))
    switched = 0
    for policy in SWITCHING:
        jobs = [job(twins, question, sampling) for question in questions]
        answers = await asyncio.gather(*(run([policy], work) for work in jobs))
        for answer, expected, work in zip(answers, plain, jobs, strict=True):
            assert [s.token for s in answer] == [s.token for s in expected]
            assert [s.finish for s in answer] == [s.finish for s in expected]
            assert [s.logprob for s in answer] == pytest.approx([s.logprob for s in expected], abs=1e-3)
            assert [s.entropy for s in answer] == pytest.approx([s.entropy for s in expected], abs=1e-4)
            assert [[t for t, _ in s.top_logprobs] for s in answer] == [
                [t for t, _ in s.top_logprobs] for s in expected
            ]
            for step in answer:
                work.report.observe(step)
            switched += work.report.switches
    assert switched > 20


async def test_guided_decoding_goes_on_after_a_hand_over(twins: dict[str, Engine]) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "sum": {"type": "integer", "maximum": 999}},
        "required": ["name", "sum"],
        "additionalProperties": False,
    }
    sampling = Sampling(max_tokens=200, temperature=1.0, seed=3, grammar=json.dumps(schema))
    for policy in SWITCHING:
        steps = await run([policy], job(twins, "hello", sampling))
        text = twins["small"].tokens.decode([s.token for s in steps])
        answer = json.loads(text)
        assert set(answer) == {"name", "sum"}
        assert steps[-1].finish == "stop"


async def test_leaving_at_any_moment_frees_both_engines(twins: dict[str, Engine]) -> None:
    rng = random.Random(2)
    policy = EntropyAdaptiveDecoding(threshold=0.01, window=1, min_tokens=1)
    sampling = Sampling(max_tokens=300, temperature=1.0, ignore_eos=True)
    for _ in range(100):
        task = asyncio.create_task(run([policy], job(twins, "What is 34 + 25 - 17?", sampling)))
        await asyncio.sleep(rng.random() * 0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [engine.active for engine in twins.values()] == [0, 0]
    assert len(await run([policy], job(twins, "hello", Sampling(max_tokens=5, temperature=0.0)))) == 5


async def test_the_ends_of_the_scale(twins: dict[str, Engine]) -> None:
    sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
    ends: list[tuple[Policy, str]] = [
        (EntropyAdaptiveDecoding(threshold=1e9, window=1, min_tokens=1, threshold_down=None), "S" * 12),
        (EntropyAdaptiveDecoding(threshold=0.0, min_tokens=2, window=1), "SS" + "L" * 10),
        (EntropyAdaptiveDecoding(threshold=0.0, start="large", window=1, min_tokens=1), "L" * 12),
        (RandomSwitch(rate=0.0), "S" * 12),
        (RandomSwitch(rate=1.0), "L" * 12),
        (Cascade(threshold=1e9), "S" * 12),
        (Cascade(threshold=0.0), "L" * 12),
        (Route(threshold=1e9), "S" * 12),
        (Route(threshold=0.0), "L" * 12),
    ]
    for policy, expected in ends:
        work = job(twins, "What is 34 + 25?", sampling)
        steps = await run([policy], work)
        assert "".join("L" if s.engine == "large" else "S" for s in steps) == expected


async def test_random_switch_keeps_its_rate(twins: dict[str, Engine]) -> None:
    sampling = Sampling(max_tokens=400, temperature=1.0, ignore_eos=True, seed=4)
    steps = await run([RandomSwitch(rate=0.3)], job(twins, "hello", sampling))
    share = sum(step.engine == "large" for step in steps) / len(steps)
    assert share == pytest.approx(0.3, abs=0.08)  # 3.5 standard deviations


async def test_route_discards_only_what_it_throws_away(twins: dict[str, Engine]) -> None:
    sampling = Sampling(max_tokens=40, temperature=0.0)
    kept, thrown = (job(twins, "What is 34 + 25?", sampling) for _ in range(2))
    await run([Route(threshold=1e9, draft_tokens=4)], kept)
    await run([Route(threshold=0.0, draft_tokens=4)], thrown)
    assert (kept.report.discarded, thrown.report.discarded) == (0, 4)
