"""A Waver in front of another server, over real HTTP: what a client sees of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Running, until
from tests.engines.vllm_here import needs_vllm
from tests.engines.vllm_serving import Served
from tests.engines.wire import HEAD, Wire, answer, behave, chunk, wired
from waver.training.pair.world import draw

HELLO = [{"role": "user", "content": "hello"}]
EAD = [{"name": "ead", "threshold": 5.7, "window": 2, "min_tokens": 1, "threshold_down": None}]
LARGE_FIRST = [{"name": "ead", "start": "large"}]


@pytest.fixture(scope="module")
def front(start: Callable[..., Running], running: Running, tiny_pair: dict[str, Path]) -> Running:
    """The small engine here, the large one in the Waver that the other tests use."""
    sizes = {name: engine.parameters for name, engine in running.runtime.engines.items()}
    engines = {
        "small": {"backend": "transformers", "model": str(tiny_pair["small"])},
        "large": {
            "backend": "openai",
            "base_url": running.v1,
            "model": "large",
            "tokenizer": str(tiny_pair["large"]),
            "parameters": sizes["large"],
        },
    }
    return start(config={"engines": engines})


@pytest.fixture
def lone(start: Callable[..., Running]) -> Iterator[tuple[Running, Wire]]:
    """A Waver in front of a server that does what it is told to."""
    with wired(Wire()) as wire:
        engine = {
            "backend": "openai", "base_url": wire.url, "model": "small", "tokenizer": str(ROOT / "models" / "small"),
            "parameters": 10, "retries": 1, "first_token_timeout": 1, "token_timeout": 1,
        }  # fmt: skip
        yield start(config={"engines": {"only": engine}, "presets": {}, "default_preset": None}), wire


def ask(server: Running, **options: Any) -> Any:
    extra = {key: options.pop(key) for key in ("policy", "trace", "ignore_eos") if key in options}
    with server.openai() as client:
        given = {"model": "large", "messages": HELLO, "max_tokens": 24, "temperature": 0, **options}
        return client.chat.completions.create(**given, extra_body={"policy": [], "trace": True, **extra})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": EAD},
        {"temperature": 1.0, "seed": 8},
        {"temperature": 1.0, "seed": 8, "top_p": 0.6},
        {"logprobs": True, "top_logprobs": 3},
    ],
    ids=["plain", "ead", "seeded", "truncated", "logprobs"],
)
def test_the_same_answer_as_from_the_upstream_itself(front: Running, running: Running, options: dict[str, Any]) -> None:
    ours, theirs = ask(front, **options), ask(running, **options)
    assert [choice.message.content for choice in ours.choices] == [choice.message.content for choice in theirs.choices]
    assert ours.usage == theirs.usage
    measured = [
        [(t.token, t.logprob, [(top.token, top.logprob) for top in t.top_logprobs]) for t in (given.content or [])]
        for given in (each.choices[0].logprobs for each in (ours, theirs))
        if given is not None
    ]
    assert len(measured) == (2 if "logprobs" in options else 0)
    for one, other in zip(*measured, strict=True) if measured else ():
        assert one[0] == other[0]
        # One of the two may have found its prompt in a cache: the last digits differ.
        assert one[1] == pytest.approx(other[1], abs=1e-5)
        assert dict(one[2]) == pytest.approx(dict(other[2]), abs=1e-5)
    mine, its = ours.waver, theirs.waver
    assert mine["tokens"] == its["tokens"] or len(mine["tokens"]) < 2
    assert mine["switches"] == its["switches"]
    assert mine["entropy"]["kind"] == "exact"
    assert mine["entropy"]["mean"] == pytest.approx(its["entropy"]["mean"], abs=1e-4)
    assert ("truncation" in mine) == ("top_p" in options)
    assert mine.get("truncation") == pytest.approx(its.get("truncation"), abs=1e-4)
    if "trace" in mine:
        assert [t["id"] for t in mine["trace"]] == [t["id"] for t in its["trace"]]
        assert [t["engine"] for t in mine["trace"]] == [t["engine"] for t in its["trace"]]
    if options.get("policy"):
        assert mine["switches"] > 2


def test_a_stream_is_the_whole_answer(front: Running) -> None:
    whole = ask(front, policy=EAD)
    options = {"model": "large", "messages": HELLO, "max_tokens": 24, "temperature": 0}
    with front.openai() as client:
        chunks = list(client.chat.completions.create(**options, stream=True, extra_body={"policy": EAD}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_echoed_logprobs(front: Running, running: Running) -> None:
    options = {"model": "large", "prompt": "The sea", "max_tokens": 2, "temperature": 0, "echo": True, "logprobs": 2}
    with front.openai() as ours, running.openai() as theirs:
        mine, its = (client.completions.create(**options).choices[0].logprobs for client in (ours, theirs))
    assert mine.tokens == its.tokens
    assert mine.token_logprobs == pytest.approx(its.token_logprobs, abs=1e-3)


@pytest.mark.parametrize("policy", [[], EAD], ids=["plain", "ead"])
def test_a_client_that_leaves_frees_both(front: Running, running: Running, policy: list[Any]) -> None:
    body = {
        "model": "large",
        "messages": HELLO,
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": True,
        "policy": policy,
    }
    for events in (1, 4):
        with front.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            for _ in range(events):
                next(lines)
        assert front.idle(within=30)
        assert running.idle(within=30)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"presence_penalty": 0.5, "policy": EAD}, "presence_penalty"),
        (
            {"response_format": {"type": "json_object"}, "policy": [{"name": "ead", "start": "large"}]},
            "response_format",
        ),
        ({"policy": [{"name": "top_h"}], "temperature": 1.0}, "policy"),
    ],
)
def test_what_an_upstream_cannot_do_is_a_400(front: Running, fields: dict[str, Any], param: str) -> None:
    body = {"model": "large", "messages": HELLO, "max_tokens": 40, "ignore_eos": True, "temperature": 0.0, **fields}
    written = front.runtime.metrics.tokens.labels("small")._value.get()
    for stream in (False, True):
        with front.http() as http:
            response = http.post("/v1/chat/completions", json=body | {"stream": stream})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
    assert front.runtime.metrics.tokens.labels("small")._value.get() == written, "before the first token"


def test_a_lost_upstream(lone: tuple[Running, Wire]) -> None:
    front, wire = lone
    body = {"model": "only", "prompt": [5, 6], "max_tokens": 4}
    with front.http() as http:
        assert http.post("/v1/completions", json=body).status_code == 200
        assert http.get("/ready").status_code == 200
        wire.away = True
        response = http.post("/v1/completions", json=body)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_unavailable"
        assert "retry-after" in response.headers
        until(lambda: http.get("/ready").status_code == 503, "/ready to tell")
        assert "only" in http.get("/ready").json()["error"]["message"]
        wire.away = False
        until(lambda: http.get("/ready").status_code == 200, "/ready to tell")
        assert http.post("/v1/completions", json=body).status_code == 200


def test_an_upstream_that_breaks_off_ends_the_stream_with_an_error(lone: tuple[Running, Wire]) -> None:
    front, wire = lone

    async def half(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for token in (343, 631):
            chunk(writer, b"data: " + json.dumps({"choices": [wire.part(token)]}).encode() + b"\n\n")
        await writer.drain()
        await asyncio.sleep(0.3)
        writer.close()

    wire.reply = half
    body = {"model": "only", "prompt": [5, 6], "max_tokens": 9, "stream": True}
    with front.http() as http, http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    assert "broke off" in json.loads(lines[-2])["error"]["message"]
    assert json.loads(lines[0])["choices"][0]["text"]
    assert front.idle(within=30)


@needs_vllm
@pytest.mark.timeout(1500)
def test_in_front_of_vllm(start: Callable[..., Running], vllm_serve: Served) -> None:
    """The same small model here and under vLLM: taking turns changes nothing, and the report says what is known."""
    model = str(ROOT / "models" / "small")
    upstream = {"backend": "openai", "base_url": vllm_serve.v1, "model": "small", "tokenizer": model, "parameters": 10}
    engines = {"small": {"backend": "transformers", "model": model}, "large": upstream}
    front = start(config={"engines": engines, "presets": {}, "default_preset": None})
    switches = 0
    for item in draw("arithmetic", 78, 5):
        messages = [{"role": "user", "content": item.prompt}]
        policy = [{"name": "ead", "threshold": 0.02, "window": 1, "min_tokens": 1}]
        turns = ask(front, messages=messages, policy=policy, max_tokens=60)
        alone = ask(front, messages=messages, model="small", max_tokens=60)
        there = ask(front, messages=messages, model="large", max_tokens=60)
        assert turns.choices[0].message.content == alone.choices[0].message.content
        assert there.choices[0].message.content == alone.choices[0].message.content
        assert there.usage == alone.usage
        entropy = there.waver["entropy"]
        assert entropy["kind"] == "bounded"
        assert entropy["lower"] - 1e-4 <= alone.waver["entropy"]["mean"] <= entropy["upper"] + 1e-4
        switches += turns.waver["switches"]
    assert switches > 3


REFUSALS = {
    "busy": (429, "retry-after: 70\r\n", 429, "70"),
    "down": (503, "", 503, "5"),
    "failing": (500, "", 503, "5"),
    "no key": (401, "", 503, "5"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_failure_before_the_first_token_is_a_status(lone: tuple[Running, Wire], refusal: str, streamed: bool) -> None:
    """Also after further tries; and what the upstream says, or where it is, is nobody's business."""
    front, wire = lone
    status, header, expected, seconds = REFUSALS[refusal]

    async def refuse(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await answer(writer, status, {"error": {"message": "node gpu-7.internal is out of memory"}}, header)

    wire.reply = refuse
    with front.http() as http:
        response = http.post(
            "/v1/completions", json={"model": "only", "prompt": "The", "max_tokens": 4, "stream": streamed}
        )
    assert response.status_code == expected
    assert response.headers["retry-after"] == seconds
    for word in ("internal", "memory", "127.0.0.1", "http"):
        assert word not in response.text
    wire.reply = None
    until(lambda: front.runtime.ready, "the upstream to be found up")


def test_an_upstream_that_accepts_and_stays_silent_is_not_ready(start: Callable[..., Running]) -> None:
    with wired(Wire()) as wire:
        engine = {
            "backend": "openai", "base_url": wire.url, "model": "small", "tokenizer": str(ROOT / "models" / "small"),
            "parameters": 10, "heartbeat_interval": 0.2, "heartbeat_timeout": 0.5, "token_timeout": 60,
        }  # fmt: skip
        front = start(config={"engines": {"only": engine}, "presets": {}, "default_preset": None})

        async def stall(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
            writer.write(HEAD)
            chunk(writer, b"data: " + json.dumps({"choices": [wire.part(10)]}).encode() + b"\n\n")
            await writer.drain()
            wire.silent = True
            await asyncio.sleep(60)

        wire.reply = stall
        body = {"model": "only", "prompt": "The", "max_tokens": 4, "stream": True}
        with front.http() as http:
            lines = [line for line in http.post("/v1/completions", json=body).text.split("\n") if line]
            assert lines[-1] == "data: [DONE]"
            assert "said nothing" in lines[-2]
            assert http.get("/ready").status_code == 503
            wire.silent, wire.reply = False, None
            until(lambda: http.get("/ready").status_code == 200, "the upstream to be found up")
            assert http.post("/v1/completions", json={**body, "stream": False}).status_code == 200


def test_an_upstream_that_is_slow_is_ready(start: Callable[..., Running]) -> None:
    """A long prompt takes its time; the upstream answers everything else."""
    with wired(Wire()) as wire:
        engine = {
            "backend": "openai", "base_url": wire.url, "model": "small", "tokenizer": str(ROOT / "models" / "small"),
            "parameters": 10, "heartbeat_interval": 0.1, "heartbeat_timeout": 0.5,
        }  # fmt: skip
        front = start(config={"engines": {"only": engine}, "presets": {}, "default_preset": None})

        async def slowly(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(3)
            await behave(wire, body, writer)

        wire.reply = slowly
        with front.http() as http:
            response = http.post("/v1/completions", json={"model": "only", "prompt": "The", "max_tokens": 4})
            assert response.status_code == 200
            assert http.get("/ready").status_code == 200
