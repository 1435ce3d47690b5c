"""The upstream engine in front of a real Waver: the same answers as from the engine itself, over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running, until
from waver.engines import TransformersConfig, UpstreamConfig, load_engine
from waver.engines.base import NO_TOKEN, Engine, EngineError, Gate, Sampling, Step, Unsupported
from waver.engines.transformers import TransformersEngine
from waver.engines.transforms import TopW
from waver.engines.upstream import UpstreamEngine
from waver.engines.upstream.limiter import ConcurrencyLimiter
from waver.engines.upstream.request import segment_seed
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.services import Services
from waver.policies.switch.ead import EntropyAdaptiveDecoding

RULES: list[tuple[int, float, int, tuple[float, ...]]] = [
    (1, 5.6, 0, ()),
    (3, 5.7, 5, (5.0, 5.0)),
    (2, 5.5, 2, (5.9,)),
    (1, 9.0, 0, ()),
]
"""Gates, as window, threshold, least tokens and history. The random model's entropies lie between 4.5 and 6 nats."""
PROMPTS = ["hello", "What is 34 + 25 - 17?", "日本 🙂 naïve", "x"]


@pytest.fixture(scope="module")
def direct(tiny_pair: dict[str, Path]) -> TransformersEngine:
    """The model behind the upstream, in this process."""
    return TransformersEngine("small", TransformersConfig(model=str(tiny_pair["small"])))


@pytest.fixture
async def connect(running: Running, tiny_pair: dict[str, Path]) -> AsyncIterator[Callable[..., Any]]:
    """Load an engine whose upstream is the running Waver."""
    loaded: list[Engine] = []

    async def one(name: str = "small", **options: Any) -> UpstreamEngine:
        given = {"base_url": running.v1, "model": "small", "tokenizer": str(tiny_pair["small"]), "parameters": 1000}
        config = UpstreamConfig(**{**given, "wait": 0, **options})
        engine = await asyncio.to_thread(load_engine, name, config)
        assert isinstance(engine, UpstreamEngine)
        loaded.append(engine)
        return engine

    yield one
    for engine in loaded:
        await engine.aclose()


@pytest.fixture
async def up(connect: Callable[..., Any]) -> UpstreamEngine:
    return await connect()


def ids(engine: Engine, text: str) -> list[int]:
    return engine.tokens.chat([{"role": "user", "content": text}])


async def steps(engine: Engine, prompt: list[int], **options: Any) -> list[Step]:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 30, **options})
    return [step async for step in engine.generate(prompt, sampling)]


def same(a: list[Step], b: list[Step]) -> None:
    assert [s.token for s in a] == [s.token for s in b]
    assert [s.finish for s in a] == [s.finish for s in b]
    assert [s.entropy for s in a] == pytest.approx([s.entropy for s in b], abs=1e-4)
    assert [s.logprob for s in a] == pytest.approx([s.logprob for s in b], abs=1e-4)
    assert [s.kept for s in a] == [s.kept for s in b]
    assert [s.crop_entropy for s in a] == [pytest.approx(s.crop_entropy, abs=1e-4) for s in b]


async def test_is_an_engine(up: UpstreamEngine) -> None:
    assert isinstance(up, Engine)
    assert (up.name, up.parameters, up.context_length, up.active, up.alive) == ("small", 1000, 1024, 0, True)
    assert (
        up.capabilities.token_format,
        up.capabilities.takes_ids,
        up.capabilities.reports_end,
        up.capabilities.reserved,
    ) == ("trace", True, True, None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_eos": True, "max_tokens": 40},
        {"temperature": 1.3, "seed": 5, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
        {"temperature": 1.0, "seed": 6, "presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2},
        {"temperature": 1.0, "seed": 7, "logit_bias": {17: 4.0, 40: -100.0}, "min_tokens": 12},
        {"stop_token_ids": tuple(range(300, 428)), "max_tokens": 60},
        {"logit_bias": {2: 100.0}},
        {"top_logprobs": 4, "max_tokens": 12},
    ],
    ids=lambda options: ",".join(options) or "greedy",
)
async def test_same_as_the_engine_itself(
    up: UpstreamEngine, direct: TransformersEngine, options: dict[str, Any]
) -> None:
    for prompt in (ids(direct, text) for text in PROMPTS):
        out, expected = await steps(up, prompt, **options), await steps(direct, prompt, **options)
        same(out, expected)
        assert all(step.entropy_bounds is None for step in out)  # Waver tells exact entropies
        assert all((step.kept is not None) == ("top_p" in options) for step in out)
        for one, other in zip(out, expected, strict=True):
            assert [t for t, _ in one.top_logprobs] == [t for t, _ in other.top_logprobs]


@pytest.mark.parametrize("timing", ["eager", "lagged"])
@pytest.mark.parametrize("above", [True, False])
async def test_gates_as_in_the_engine_itself(
    up: UpstreamEngine, direct: TransformersEngine, timing: Any, above: bool
) -> None:
    prompt, fired = ids(direct, PROMPTS[0]), 0
    for window, threshold, least, history in RULES:
        gate = Gate(window, threshold, above, least, timing, history)
        out = await steps(up, prompt, gate=gate, temperature=1.0, seed=3, ignore_eos=True)
        same(out, await steps(direct, prompt, gate=gate, temperature=1.0, seed=3, ignore_eos=True))
        if out[-1].finish == "gate":
            assert (out[-1].token == NO_TOKEN) == (timing == "eager")
            fired += 1
    assert fired >= 2


async def test_limits_hold_over_the_whole_answer(up: UpstreamEngine, direct: TransformersEngine) -> None:
    prompt = ids(direct, PROMPTS[1])
    whole = await steps(direct, prompt, max_tokens=20, ignore_eos=True)
    begun = [*prompt, *(step.token for step in whole[:7])]
    rest = await steps(up, begun, max_tokens=20, ignore_eos=True, answer_start=len(prompt))
    assert [step.token for step in rest] == [step.token for step in whole[7:]]
    assert rest[-1].finish == "length"
    # The end is barred until the whole answer has so many tokens.
    options = {"logit_bias": {2: 100.0}, "min_tokens": 10, "answer_start": len(prompt)}
    assert len(await steps(up, begun, **options)) == len(await steps(direct, begun, **options)) == 4


async def test_no_draw_repeats_after_a_hand_over(up: UpstreamEngine, direct: TransformersEngine) -> None:
    assert len({segment_seed(9, written) for written in range(500)}) == 500
    assert (segment_seed(9, 0), segment_seed(2**40 + 9, 0)) == (9, 9)
    prompt = ids(direct, PROMPTS[0])
    flat = {"temperature": 2.0, "seed": 9, "ignore_eos": True, "max_tokens": 20}
    first = await steps(up, prompt, **flat)
    # The same context again, but as if ten tokens of the answer were there already.
    later = await steps(up, prompt, **flat, answer_start=len(prompt) - 10)
    assert [step.token for step in later] != [step.token for step in first[:10]]
    again = await steps(up, prompt, **flat, answer_start=len(prompt) - 10)
    assert [step.token for step in later] == [step.token for step in again]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"grammar": '{"type": "integer"}'}, "response_format"),
    ],
)
async def test_what_a_hand_over_would_lose_is_refused(up: UpstreamEngine, options: dict[str, Any], param: str) -> None:
    prompt = ids(up, PROMPTS[0])
    for where in ({"answer_start": len(prompt) - 1}, {"gate": Gate(1, 1.0)}):
        with pytest.raises(Unsupported, match="in turns") as caught:
            await steps(up, prompt, **options, **where)
        assert caught.value.param == param
    assert await steps(up, prompt, **options, answer_start=len(prompt))


async def test_what_it_cannot_do(up: UpstreamEngine) -> None:
    prompt = ids(up, "hello")
    cases: list[tuple[Any, str]] = [
        (steps(up, prompt, transforms=(TopW(),), temperature=1.0), "cannot draw as the policy says"),
        (steps(up, prompt, top_logprobs=21), "at most 20"),
        (steps(up, []), "empty"),
        (steps(up, prompt * 200), "maximum context length is 1024 tokens"),
        (up.score(prompt, 21), "at most 20"),
        (up.hidden_state(prompt), "hidden states"),
        (up.attention(prompt, 0), "attention"),
    ]
    for call, said in cases:
        with pytest.raises(Unsupported, match=said):
            await call
    with pytest.raises(Unsupported, match="embeddings"):
        up.embedding_matrix()
    assert up.active == 0


async def test_a_grammar_from_the_start(up: UpstreamEngine, direct: TransformersEngine) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer", "maximum": 99}}, "required": ["sum"]}
    options = {"grammar": json.dumps(schema | {"additionalProperties": False}), "temperature": 1.0, "seed": 4}
    out = await steps(up, ids(direct, "hello"), **options, max_tokens=60)
    assert set(json.loads(up.tokens.decode([step.token for step in out]))) == {"sum"}
    assert out[-1].finish == "stop"
    assert [s.token for s in out] == [
        s.token for s in await steps(direct, ids(direct, "hello"), **options, max_tokens=60)
    ]


async def test_score(up: UpstreamEngine, direct: TransformersEngine) -> None:
    text = ids(direct, PROMPTS[2])
    out, expected = await up.score(text, 3), await direct.score(text, 3)
    assert [s.token for s in out] == [s.token for s in expected] == text[1:]
    assert [s.logprob for s in out] == pytest.approx([s.logprob for s in expected], abs=1e-4)
    for one, other in zip(out, expected, strict=True):
        assert one.entropy_bounds is not None
        low, high = one.entropy_bounds
        assert low - 1e-4 <= other.entropy <= high + 1e-4
        assert [t for t, _ in one.top_logprobs] == [t for t, _ in other.top_logprobs]
    assert await up.score(text[:1]) == []


async def test_taking_turns_with_an_embedded_engine(
    up: UpstreamEngine, connect: Callable[..., Any], direct: TransformersEngine
) -> None:
    """With the same model on both sides, switching changes nothing but the name of the writer."""
    other = await connect("large")
    for pair in ({"small": direct, "large": other}, {"small": up, "large": other}):
        switches = 0
        for policy in (
            EntropyAdaptiveDecoding(threshold=5.7, window=1, min_tokens=1, threshold_down=None),
            EntropyAdaptiveDecoding(threshold=5.7, window=3, min_tokens=2, timing="lagged", threshold_down=None),
            EntropyAdaptiveDecoding(threshold=5.7, window=2, min_tokens=1, monitor="small", threshold_down=None),
        ):
            prompt = tuple(ids(direct, PROMPTS[1]))
            job = Job(
                prompt, Sampling(temperature=0.0, max_tokens=25, ignore_eos=True), "small", Services(pair), Report()
            )
            async with aclosing(Proceed((policy,))(job)) as answer:
                out = [step async for step in answer]
            expected = await steps(direct, list(prompt), max_tokens=25, ignore_eos=True)
            assert [s.token for s in out] == [s.token for s in expected]
            assert [s.entropy for s in out] == pytest.approx([s.entropy for s in expected], abs=1e-4)
            for step in out:
                job.report.observe(step)
            switches += job.report.switches
        assert switches > 5


async def test_leaving_closes_the_stream_at_once(up: UpstreamEngine, running: Running) -> None:
    for read in (0, 1, 5):
        generator = up.generate(ids(up, "hello"), Sampling(temperature=1.0, ignore_eos=True, max_tokens=900))
        task = asyncio.create_task(anext(generator))
        for _ in range(read):
            await task
            task = asyncio.create_task(anext(generator))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await generator.aclose()
        assert up.active == 0
        assert await asyncio.to_thread(running.idle, 2.0)


async def test_a_gate_that_fires_frees_the_upstream(up: UpstreamEngine, running: Running) -> None:
    gate = Gate(window=1, threshold=0.0, min_tokens=2)
    out = await steps(up, ids(up, "hello"), gate=gate, ignore_eos=True, max_tokens=900)
    assert [step.finish for step in out] == [None, None, "gate"]
    assert await asyncio.to_thread(running.idle, 2.0)


async def test_who_gives_up_waiting_takes_no_place_with_it(connect: Callable[..., Any]) -> None:
    engine = await connect(max_connections=2)
    asked = [asyncio.create_task(steps(engine, ids(engine, f"{i}"), max_tokens=60, ignore_eos=True)) for i in range(8)]
    await asyncio.sleep(0.05)
    for task in asked[:6]:
        task.cancel()
    assert [len(await task) for task in asked[6:]] == [60] * 2
    assert engine.active == 0


async def test_an_answer_that_has_begun_comes_first() -> None:
    limiter, order = ConcurrencyLimiter(1), []

    async def enter(name: str, begun: bool) -> None:
        async with limiter.admitted(begun):
            order.append(name)
            await asyncio.sleep(0)

    async with limiter.admitted(begun=False):
        waiting = [
            asyncio.create_task(enter(*who)) for who in (("new", False), ("gone", True), ("on", True), ("on2", True))
        ]
        await asyncio.sleep(0)
        waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert order == ["on", "on2", "new"]


async def test_closing_ends_what_runs(connect: Callable[..., Any], running: Running) -> None:
    engine = await connect()
    asked = [
        asyncio.create_task(steps(engine, ids(engine, "hello"), max_tokens=900, ignore_eos=True)) for _ in range(3)
    ]
    await asyncio.to_thread(until, lambda: running.active == 3, "the requests")
    await engine.aclose()
    for result in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(result, EngineError)
        assert "closed" in str(result)
    assert (engine.active, engine.alive) == (0, False)
    assert await asyncio.to_thread(running.idle, 2.0)
    for call in (steps(engine, [5, 6]), engine.score([5, 6])):
        with pytest.raises(EngineError, match="closed"):
            await call


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "http://127.0.0.1:9/v1"}, "cannot be reached"),
        ({"model": "smal"}, "has no model 'smal'; it has 'small', 'large'"),
        ({"tokenizer": "/nowhere"}, "set `tokenizer`"),
        ({"parameters": None}, "set `parameters`"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ({"ca_file": "/nowhere.pem"}, "/nowhere.pem"),
        ({"plugin": True}, "does not run Waver's plugin"),
    ],
)
async def test_what_cannot_be_loaded(connect: Callable[..., Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="engine 'small' at http") as caught:
        await connect(**options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_an_address_without_the_api(connect: Callable[..., Any], running: Running) -> None:
    with pytest.raises(ValueError, match=r"no /completions|/v1"):
        await connect(base_url=f"{running.url}/elsewhere")


async def test_patience_with_an_upstream_that_is_starting(
    connect: Callable[..., Any], start: Callable[..., Running], tiny_pair: dict[str, Path]
) -> None:
    late = start(wait=False)
    began = time.monotonic()
    engine = await connect(base_url=late.v1, wait=30)
    assert late.runtime.ready
    assert time.monotonic() - began < 30
    assert len(await steps(engine, [5, 6, 7], max_tokens=3, ignore_eos=True)) == 3


async def test_keys(
    connect: Callable[..., Any], start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UP_KEYS", "sk-right-one")
    guarded = start(api_keys_env="UP_KEYS")
    monkeypatch.setenv("MY_KEY", "sk-wrong-one")
    with pytest.raises(ValueError, match="does not accept the key") as caught:
        await connect(base_url=guarded.v1, api_key_env="MY_KEY")
    assert "sk-" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sk-right-one")
    engine = await connect(base_url=guarded.v1, api_key_env="MY_KEY")
    assert len(await steps(engine, [5, 6, 7], max_tokens=3, ignore_eos=True)) == 3
    assert "sk-right-one" not in repr(vars(engine))
