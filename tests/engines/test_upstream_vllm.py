"""A real `vllm serve` as the upstream, with Waver's plugin and without: it answers as the embedded engine does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from tests.conftest import until
from tests.engines.driving import ROOT
from tests.engines.vllm_here import needs_vllm
from tests.engines.vllm_serving import Served
from waver.engines import UpstreamConfig, load_engine
from waver.engines.base import NO_TOKEN, Engine, Gate, Sampling, Step, Unsupported
from waver.engines.transformers import TransformersEngine
from waver.engines.transforms import AdaptiveTemperature, TopP
from waver.engines.upstream import UpstreamEngine
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.services import Services
from waver.policies.switch.ead import EntropyAdaptiveDecoding
from waver.training.pair.world import draw

pytestmark = [needs_vllm, pytest.mark.timeout(1500)]

QUESTIONS = [item.prompt for kind in ("arithmetic", "tail_facts") for item in draw(kind, 77, 3)]


@pytest.fixture(params=["plugin", "stock"])
def served(request: pytest.FixtureRequest) -> Served:
    server: Served = request.getfixturevalue("vllm_serve" if request.param == "plugin" else "vllm_stock")
    return server


async def connect(served: Served, **options: Any) -> UpstreamEngine:
    given = {"base_url": served.v1, "model": "small", "tokenizer": str(ROOT / "models" / "small"), "parameters": 10}
    engine = await asyncio.to_thread(load_engine, "up", UpstreamConfig(**{**given, **options}))
    assert isinstance(engine, UpstreamEngine)
    return engine


@pytest.fixture
async def up(served: Served) -> AsyncIterator[UpstreamEngine]:
    engine = await connect(served)
    yield engine
    await engine.aclose()


def ids(engine: Engine, question: str) -> list[int]:
    return engine.tokens.chat([{"role": "user", "content": question}])


async def steps(engine: Engine, prompt: list[int], **options: Any) -> list[Step]:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 60, **options})
    return [step async for step in engine.generate(prompt, sampling)]


def agree(out: list[Step], expected: list[Step]) -> None:
    """Equal, and the exact entropies lie within the bounds."""
    assert [step.token for step in out] == [step.token for step in expected]
    assert [step.finish for step in out] == [step.finish for step in expected]
    for one, other in zip(out, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.entropy_bounds is not None
        low, high = one.entropy_bounds
        assert low - 1e-4 <= other.entropy <= high + 1e-4
        assert low <= one.entropy <= high


async def test_what_is_found(served: Served, vllm_stock: Served, up: UpstreamEngine) -> None:
    assert (
        up.capabilities.token_format,
        up.capabilities.takes_ids,
        up.capabilities.top,
        up.capabilities.extras,
        up.capabilities.reports_end,
    ) == (
        "ids",
        True,
        20,
        True,
        True,
    )
    assert (up.capabilities.reserved is None) == (served is vllm_stock)
    assert up.context_length == 1024


async def test_greedy_answers(up: UpstreamEngine, small: TransformersEngine) -> None:
    ends = set()
    for prompt in (ids(small, question) for question in QUESTIONS):
        agree(await steps(up, prompt, top_logprobs=3), expected := await steps(small, prompt, top_logprobs=3))
        ends.add(expected[-1].finish)
        agree(await steps(up, prompt, max_tokens=7), await steps(small, prompt, max_tokens=7))
    assert "stop" in ends


@pytest.mark.parametrize("where", ["there", "here"])
@pytest.mark.parametrize("timing", ["eager", "lagged"])
async def test_gates(vllm_serve: Served, small: TransformersEngine, timing: Any, where: str) -> None:
    """In the upstream, by the plugin, and here, on the midpoints of the bounds: as in the embedded engine."""
    up, fired = await connect(vllm_serve, plugin=where == "there"), 0
    assert (up.capabilities.reserved is not None) == (where == "there")
    for prompt in (ids(small, question) for question in QUESTIONS):
        for gate in (
            Gate(1, 0.3, timing=timing),
            Gate(3, 0.1, min_tokens=4, timing=timing, history=(0.01, 0.02)),
            Gate(2, 1e-5, above=False, min_tokens=2, timing=timing, history=(1.0,)),
            Gate(1, 50.0, timing=timing),
        ):
            out, expected = await steps(up, prompt, gate=gate), await steps(small, prompt, gate=gate)
            assert [step.token for step in out] == [step.token for step in expected]
            assert [step.finish for step in out] == [step.finish for step in expected]
            if out[-1].finish == "gate":
                fired += 1
                assert (out[-1].token == NO_TOKEN) == (timing == "eager")
                low, high = out[-1].entropy_bounds or (0.0, 0.0)
                assert low - 1e-4 <= expected[-1].entropy <= high + 1e-4
    assert fired > 10
    await up.aclose()


@pytest.mark.parametrize(
    "touched",
    [
        {"logit_bias": {5: 30.0, 6: 30.0}, "max_tokens": 12},
        {"min_tokens": 40},
        {"repetition_penalty": 1.4},
        {"logit_bias": {7: -5.0}, "temperature": 1.2, "top_k": 1},
    ],
    ids=["bias", "min_tokens", "repetition", "a cooler draw"],
)
async def test_a_gate_sees_the_models_own_logits(
    up: UpstreamEngine, small: TransformersEngine, touched: dict[str, Any]
) -> None:
    """Whatever vLLM applies before plugins changes the entropies that the plugin sees."""
    fired = 0
    for prompt in (ids(small, question) for question in QUESTIONS):
        for gate in (Gate(1, 0.3, min_tokens=2), Gate(2, 1e-4, above=False, min_tokens=3)):
            out, expected = [await steps(engine, prompt, gate=gate, **touched) for engine in (up, small)]
            assert [(step.token, step.finish) for step in out] == [(step.token, step.finish) for step in expected]
            fired += out[-1].finish == "gate"
    assert fired > 3


async def test_a_gate_beside_min_tokens(up: UpstreamEngine, small: TransformersEngine) -> None:
    """vLLM bars every end until there are so many tokens; the gate still fires where it should."""
    gate, prompt = Gate(1, 0.0, min_tokens=3), ids(small, QUESTIONS[0])
    out = await steps(up, prompt, gate=gate, min_tokens=20)
    assert [step.token for step in out] == [s.token for s in await steps(small, prompt, gate=gate, min_tokens=20)]
    assert (len(out), out[-1].finish) == (4, "gate")


async def test_choices_of_one_gated_request(vllm_serve: Served, small: TransformersEngine) -> None:
    """Without Waver between: each choice ends where its own entropies say."""
    gate, ended, seen = {"threshold": 1.2, "window": 2, "min_tokens": 2}, list[bool](), set[tuple[int, ...]]()
    async with httpx.AsyncClient(timeout=120) as client:
        for seed, question in enumerate(QUESTIONS):
            prompt = ids(small, question)
            body = {"model": "small", "prompt": prompt, "n": 2, "seed": seed, "temperature": 1.4, "max_tokens": 20}
            body |= {"return_token_ids": True, "vllm_xargs": {"waver": json.dumps({"gate": gate})}}
            choices = (await client.post(f"{vllm_serve.v1}/completions", json=body)).json()["choices"]
            assert len(choices) == 2
            for choice in choices:
                written, fired = choice["token_ids"], choice["stop_reason"] is not None
                if fired:
                    assert written.pop() == choice["stop_reason"]
                # The token after the last one only asks for the distribution that it is drawn from.
                scored = (await small.score([*prompt, *written, prompt[0]]))[len(prompt) - 1 :]
                entropies = [step.entropy for step in scored]
                means = [sum(entropies[max(0, i - 1) : i + 1]) / min(i + 1, 2) for i in range(len(entropies))]
                above = [i for i, mean in enumerate(means) if i >= 2 and mean >= 1.2]
                assert above[:1] == [len(written)] if fired else not [i for i in above if i < len(written)]
                ended.append(fired)
                seen.add(tuple(written))
    assert len(set(ended)) == 2
    assert len(seen) > len(QUESTIONS)


async def test_taking_turns(up: UpstreamEngine, small: TransformersEngine) -> None:
    """The same model on both sides: switching changes nothing but the name of the writer."""
    switches = 0
    for policy in (
        EntropyAdaptiveDecoding(large="up", threshold=0.02, window=1, min_tokens=1),
        EntropyAdaptiveDecoding(large="up", threshold=0.02, window=3, min_tokens=2, timing="lagged"),
        EntropyAdaptiveDecoding(large="small", small="up", threshold=0.02, monitor="small", window=2, min_tokens=1),
    ):
        for prompt in (tuple(ids(small, question)) for question in QUESTIONS[:4]):
            job = Job(
                prompt,
                Sampling(temperature=0.0, max_tokens=60),
                "small",
                Services({"small": small, "up": up}),
                Report(),
            )
            async with aclosing(Proceed((policy,))(job)) as answer:
                out = [step async for step in answer]
            expected = await steps(small, list(prompt))
            assert [step.token for step in out] == [step.token for step in expected]
            assert out[-1].finish == expected[-1].finish
            for step in out:
                job.report.observe(step)
            assert job.report.as_dict()["entropy"]["kind"] == ("bounded" if "up" in job.report.tokens else "exact")
            switches += job.report.switches
    assert switches > 10


async def test_sampled_answers_are_repeatable(up: UpstreamEngine) -> None:
    prompt = ids(up, QUESTIONS[-1])
    flat = {"temperature": 2.0, "ignore_eos": True, "max_tokens": 30, "seed": 5}
    first, again = await steps(up, prompt, **flat), await steps(up, prompt, **flat)
    assert [step.token for step in first] == [step.token for step in again]
    other = await steps(up, prompt, **{**flat, "seed": 6})
    assert [step.token for step in first] != [step.token for step in other]
    # With one token to draw from, a draw is the greedy choice; vLLM's own defaults do not get in between.
    narrow = await steps(up, prompt, temperature=2.0, top_k=1, seed=1)
    assert [step.token for step in narrow] == [step.token for step in await steps(up, prompt)]


async def test_transforms_run_in_the_plugin(served: Served, vllm_stock: Served, up: UpstreamEngine) -> None:
    prompt = ids(up, QUESTIONS[0])
    narrow = {"transforms": (TopP(p=1e-6),), "temperature": 2.0, "min_p": 0.01, "seed": 3}
    if served is vllm_stock:
        with pytest.raises(Unsupported, match="no vLLM with Waver's plugin"):
            await steps(up, prompt, **narrow)
        return
    greedy = [step.token for step in await steps(up, prompt)]
    assert [step.token for step in await steps(up, prompt, **narrow)] == greedy
    for penalty in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        with pytest.raises(Unsupported, match="may penalise after it") as caught:
            await steps(up, prompt, **narrow, **{penalty: 0.5})
        assert caught.value.param == penalty
        assert await steps(up, prompt, **{**narrow, "temperature": 0.0}, **{penalty: 0.5})
    # Below its lowest entropy everywhere, an adaptive temperature is a plain one.
    cool = AdaptiveTemperature(span=0.3, low=50.0, pivot=60.0, high=70.0)
    warm = {"temperature": 2.0, "seed": 3, "ignore_eos": True, "max_tokens": 40}
    adapted = await steps(up, prompt, transforms=(cool,), **warm)
    assert [s.token for s in adapted] == [s.token for s in await steps(up, prompt, **{**warm, "temperature": 1.4})]
    assert [s.token for s in adapted] != [s.token for s in await steps(up, prompt, **warm)]
    for param, value in (("logit_bias", {5: 1.0}), ("min_tokens", 3)):
        with pytest.raises(Unsupported, match="measures after it") as caught:
            await steps(up, prompt, transforms=(cool,), **warm, **{param: value})
        assert caught.value.param == param
    with pytest.raises(Unsupported, match="reserved") as caught:
        await steps(up, prompt, stop_token_ids=(up.capabilities.reserved,))
    assert caught.value.param == "stop_token_ids"


async def test_a_grammar(up: UpstreamEngine) -> None:
    choices = ["not at all", "by all means"]
    out = await steps(up, ids(up, "hello"), grammar=json.dumps({"enum": choices}), temperature=1.0, seed=1)
    assert json.loads(up.tokens.decode([step.token for step in out])) in choices
    assert out[-1].finish == "stop"


async def test_score(up: UpstreamEngine, small: TransformersEngine) -> None:
    text = ids(small, QUESTIONS[0])
    out, expected = await up.score(text, 2), await small.score(text, 2)
    agree(out, expected)
    assert [[t for t, _ in s.top_logprobs] for s in out] == [[t for t, _ in s.top_logprobs] for s in expected]


async def test_who_leaves_frees_the_upstream(up: UpstreamEngine, served: Served) -> None:
    """A busy vLLM may have written an answer before it notices that its reader left: the first one cut off will do."""
    for question in 5 * QUESTIONS[:4]:
        written = served.written
        generator = up.generate(ids(up, question), Sampling(temperature=1.0, ignore_eos=True, max_tokens=900))
        await anext(generator)
        await generator.aclose()
        assert up.active == 0
        await asyncio.to_thread(until, lambda: served.running == 0, "vLLM to let go", 60)
        if served.written - written < 800:
            return
    pytest.fail("all answers came to their ends")
