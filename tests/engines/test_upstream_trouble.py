"""Upstreams that misbehave, and upstreams of other kinds: real bytes over real sockets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT, until
from tests.engines.wire import HEAD, Reply, Wire, answer, behave, chunk, stream, wired
from waver.engines import UpstreamConfig, load_engine
from waver.engines.base import EngineBusy, EngineError, Sampling, Step, Unsupported, in_full
from waver.engines.tokens import TokenText
from waver.engines.upstream import UpstreamEngine, client
from waver.engines.upstream.engine import load_tokenizer
from waver.engines.upstream.health import HealthCheck
from waver.engines.upstream.parsing import TokenParser

SMALL = str(ROOT / "models" / "small")
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def tokens() -> TokenText:
    return load_tokenizer(UpstreamConfig(base_url="http://x/v1", model=SMALL))


@pytest.fixture
def serve() -> Iterator[Callable[..., Wire]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(wired(Wire(**options)))


def config(wire: Wire, **options: Any) -> UpstreamConfig:
    quick = {"wait": 0, "retries": 2, "first_token_timeout": 0.5, "token_timeout": 0.5, "connect_timeout": 0.5}
    given = {"base_url": wire.url, "model": "small", "tokenizer": SMALL, "parameters": 10}
    return UpstreamConfig(**{**given, **quick, **options})


async def load(wire: Wire, **options: Any) -> UpstreamEngine:
    engine = await asyncio.to_thread(load_engine, "up", config(wire, **options))
    assert isinstance(engine, UpstreamEngine)
    return engine


async def steps(engine: UpstreamEngine, prompt: list[int] = PROMPT, **options: Any) -> list[Step]:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 4, **options})
    return [step async for step in engine.generate(prompt, sampling)]


def raw(*parts: bytes, hang: bool = False) -> Reply:
    """Send these bytes, then close, or keep silent."""

    async def reply(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
        await writer.drain()
        if hang:
            await asyncio.sleep(60)
        writer.close()

    return reply


def in_chunks(*lines: bytes) -> bytes:
    return HEAD + b"".join(f"{len(line):x}\r\n".encode() + line + b"\r\n" for line in lines)


def first_chunk(**more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [Wire().part(10) | more]}).encode() + b"\n\n"


def whole(status: int, content: bytes, kind: str = "text/html", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n{extra}\r\n"
    return head.encode() + content


FAILURES = {
    "a page": (raw(whole(200, b"<html>welcome</html>")), "than a stream: text/html"),
    "half a stream": (raw(in_chunks(first_chunk())), "broke off in the middle"),
    "an end too soon": (raw(in_chunks(first_chunk()) + b"0\r\n\r\n"), "in the middle"),
    "done too soon": (raw(in_chunks(first_chunk(), b"data: [DONE]\n\n") + b"0\r\n\r\n"), "in the middle"),
    "silence": (raw(hang=True), "said nothing for too long"),
    "headers and silence": (raw(HEAD, hang=True), "said nothing for too long"),
    "comments and silence": (raw(in_chunks(*[b": alive\n\n"] * 5), hang=True), "said nothing for too long"),
    "a token and silence": (raw(in_chunks(first_chunk()), hang=True), "said nothing for too long"),
    "half a line": (raw(in_chunks(b"data: {\"choices"), hang=True), "said nothing for too long"),
    "garbage": (raw(in_chunks(b"\x00\xff\xfe garbage\n")), "not a server-sent event"),
    "no JSON": (raw(in_chunks(b"data: {oops\n\n")), "not a JSON object"),
    "a list": (raw(in_chunks(b"data: []\n\n")), "not a JSON object"),
    "choices of another kind": (raw(in_chunks(b'data: {"choices": "x"}\n\n')), "without choices"),
    "an error inside": (raw(in_chunks(b'data: {"error": {"message": "out of\\nmemory"}}\n')), "failed: out of memory"),
    "an error as a string": (raw(in_chunks(b'data: {"error": "busy"}\n\n')), "failed: busy"),
    "log-probabilities above 0": (raw(in_chunks(first_chunk(logprobs={
        "tokens": ["token_id:3"], "token_logprobs": [2.0], "top_logprobs": [{"token_id:3": 2.0}]}))), "impossible"),
    "no log-probabilities": (raw(in_chunks(first_chunk(logprobs={
        "tokens": ["token_id:3"], "token_logprobs": [-1.0], "top_logprobs": [None]}))), "impossible"),
    "fewer log-probabilities than tokens": (raw(in_chunks(first_chunk(logprobs={
        "tokens": ["token_id:3"], "token_logprobs": [], "top_logprobs": []}))), "make no sense"),
    "an unknown token": (raw(in_chunks(first_chunk(logprobs={
        "tokens": ["token_id:99999"], "token_logprobs": [-0.1], "top_logprobs": [{"token_id:99999": -0.1}]}))),
        "token 99999, which its tokenizer does not have"),
    "an unknown reason": (raw(in_chunks(first_chunk(finish_reason="abort"))), "'abort'"),
    "broken HTTP": (raw(b"SPAM 1 2 3\r\n\r\n"), "cannot be reached"),
    "a redirect": (raw(whole(301, b"", extra="location: http://127.0.0.1:9/\r\n")), "status 301"),
    "not allowed": (raw(whole(401, b'{"error": {"message": "bad key sk-secret-key"}}')), "does not accept the key"),
    "a failure": (raw(whole(500, b'{"error": {"message": "no luck: sk-secret-key"}}')), "status 500: no luck: …"),
    "nobody behind the proxy": (raw(whole(502, b"<html>")), "status 502"),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "said"), FAILURES.values(), ids=FAILURES)
async def test_a_clear_error_in_time(
    serve: Callable[..., Wire], reply: Reply, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret-key")
    wire = serve()
    engine = await load(wire, api_key_env="SOME_KEY")
    wire.reply = reply
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        await steps(engine)
    assert said in in_full(caught.value)
    for foreign in ("127.0.0.1", "text/html", "out of", "busy", "no luck", "abort"):
        assert foreign not in str(caught.value)
    assert time.monotonic() - began < 30
    assert engine.active == 0
    trail: BaseException | None = caught.value
    while trail is not None:
        assert "sk-secret-key" not in (in_full(trail) if isinstance(trail, EngineError) else str(trail))
        trail = trail.__cause__
    assert "authorization: bearer sk-secret-key" in wire.heads[-1].lower()
    wire.reply = None
    await asyncio.to_thread(until, lambda: engine.alive, "the upstream to be found alive", 5)
    assert len(await steps(engine)) == 4  # and the next request is served
    await engine.aclose()


async def test_what_the_upstream_refuses_is_the_clients_to_mend(serve: Callable[..., Wire]) -> None:
    wire = serve()
    engine = await load(wire)
    wire.reply = raw(whole(400, b'{"error": {"message": "no such bias", "param": "logit_bias"}}', "application/json"))
    with pytest.raises(Unsupported, match="refuses the request") as caught:
        await steps(engine, logit_bias={4: 1.0})
    assert "no such bias" not in str(caught.value)
    assert caught.value.detail == "no such bias"
    assert caught.value.param == "logit_bias"
    await engine.aclose()


@pytest.mark.parametrize(
    "trouble",
    [
        raw(whole(503, b"starting")),
        raw(whole(502, b"starting")),
        raw(whole(429, b"busy", extra="retry-after: 0\r\n")),
        raw(b""),
        raw(HEAD),
        raw(in_chunks(b'data: {"choices": [{"index": 0, "text": ""}]}\n\n')),
    ],
    ids=["503", "502", "429", "reset", "reset after the headers", "reset after an empty chunk"],
)
async def test_tried_again_until_the_first_token(serve: Callable[..., Wire], trouble: Reply) -> None:
    wire = serve()
    engine = await load(wire)
    before = len(wire.seen)

    async def twice(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await (trouble if len(wire.seen) - before <= 2 else behave)(wire, body, writer)

    wire.reply = twice
    assert [step.token for step in await steps(engine)] == [10, 11, 12, 13]
    assert len(wire.seen) - before == 3
    await engine.aclose()


async def test_never_tried_again_after_the_first_token(serve: Callable[..., Wire]) -> None:
    wire = serve()
    engine = await load(wire)
    before, wire.reply = len(wire.seen), raw(in_chunks(first_chunk()))
    generator = engine.generate(PROMPT, Sampling(max_tokens=9))
    async with aclosing(generator):
        assert (await anext(generator)).token == 10
        with pytest.raises(EngineError, match="broke off"):
            await anext(generator)
    assert len(wire.seen) - before == 1
    await engine.aclose()


@pytest.mark.parametrize(("value", "least", "tries"), [("1", 2, 3), ("90", 0, 1), ("soon", 0, 3)])
async def test_retry_after(serve: Callable[..., Wire], value: str, least: float, tries: int) -> None:
    wire = serve()
    engine = await load(wire)
    before, began = len(wire.seen), time.monotonic()
    wire.reply = raw(whole(429, b"busy", extra=f"retry-after: {value}\r\n"))
    with pytest.raises(EngineBusy, match="is busy") as caught:
        await steps(engine)
    assert caught.value.retry_after == (float(value) if value.isdecimal() else 0)
    assert least <= time.monotonic() - began < 30
    assert len(wire.seen) - before == tries
    assert engine.alive  # it is busy, not away
    await engine.aclose()


async def test_dead_until_it_answers_again(serve: Callable[..., Wire], monkeypatch: pytest.MonkeyPatch) -> None:
    with wired(Wire()) as wire:
        engine, port = await load(wire), wire.port
        assert engine.alive
    with pytest.raises(EngineError, match="cannot be reached"):
        await steps(engine)
    await asyncio.to_thread(until, lambda: not engine.alive, "the loss to be noticed")
    for name, seconds in (("FIRST_PAUSE", 60.0), ("LONGEST_PAUSE", 60.0), ("PATIENCE", 600.0)):
        monkeypatch.setattr(client, name, seconds)
    began = time.monotonic()
    with pytest.raises(EngineError, match="cannot be reached"):
        await steps(engine)
    assert time.monotonic() - began < 20  # what is known to be away is tried once
    with wired(Wire(), port):
        await asyncio.to_thread(until, lambda: engine.alive, "the upstream to be found again")
        assert len(await steps(engine)) == 4
        await engine.aclose()


async def test_the_upstream_sees_who_leaves(serve: Callable[..., Wire]) -> None:
    wire = serve()
    engine = await load(wire)

    async def endless(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        try:
            while True:
                chunk(writer, first_chunk())
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            wire.gone.set()

    wire.reply = endless
    generator = engine.generate(PROMPT, Sampling(max_tokens=900))
    await anext(generator)
    await generator.aclose()
    assert await asyncio.to_thread(wire.gone.wait, 1.0)
    await engine.aclose()


async def test_connections_are_kept_and_bounded(serve: Callable[..., Wire]) -> None:
    wire = serve()
    engine = await load(wire, max_connections=3)
    running, most = 0, 0

    async def slow(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.03)
        running -= 1
        await behave(wire, body, writer)

    wire.reply, before = slow, wire.connections
    answers = await asyncio.gather(*(steps(engine) for _ in range(12)))
    assert [len(answer) for answer in answers] == [4] * 12
    assert most == 3
    assert wire.connections - before == 3
    await engine.aclose()


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vLLM": ({}, {"token_format": "ids", "top": 20, "extras": True, "reports_end": True}),
    "llama.cpp": (
        {"shape": "content", "tells_end": False},
        {"token_format": "names", "reports_end": False, "extras": True},
    ),
    "strict": ({"shape": "names", "takes_extras": False}, {"token_format": "names", "extras": False}),
    "text only": ({"takes_ids": False, "shape": "names", "most_logprobs": 5}, {"takes_ids": False, "top": 5}),
}


@pytest.mark.parametrize(("kind", "able"), KINDS.values(), ids=KINDS)
async def test_other_kinds_of_server(
    serve: Callable[..., Wire], tokens: TokenText, kind: dict[str, Any], able: dict[str, Any]
) -> None:
    wire = serve(spell=tokens.token_str, **kind)
    engine = await load(wire)
    assert {name: getattr(engine.capabilities, name) for name in able} == able
    out = await steps(engine, top_logprobs=2)
    assert [step.token for step in out] == [10, 11, 12, 13]
    assert [step.finish for step in out] == [None, None, None, "length"]
    for step in out:
        assert step.entropy_bounds is not None
        assert 0 < step.entropy_bounds[0] < step.entropy < step.entropy_bounds[1]
        assert step.logprob == pytest.approx(-0.6931)
        assert [token for token, _ in step.top_logprobs] == [step.token, step.token + 1]
    asked = wire.seen[-1]
    assert asked["prompt"] == (PROMPT if wire.takes_ids else tokens.decode(PROMPT))
    assert ("top_k" in asked) == engine.capabilities.extras
    # An answer that ends at once, with and without a word about the token that ended it.
    ended = await steps(engine, logit_bias={2: 100.0})
    assert [(step.token, step.finish) for step in ended] == [(2, "stop")]
    await engine.aclose()


async def test_an_end_that_is_not_told_belongs_to_the_token_before(serve: Callable[..., Wire]) -> None:
    wire = serve(tells_end=False)
    engine = await load(wire)

    async def ending(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await stream(writer, [wire.part(10), wire.part(11), {"index": 0, "text": "", "finish_reason": "stop"}])

    wire.reply = ending
    assert [(step.token, step.finish) for step in await steps(engine)] == [(10, None), (11, "stop")]
    await engine.aclose()


async def test_text_only_cannot_go_on_inside_of_a_character(serve: Callable[..., Wire], tokens: TokenText) -> None:
    engine = await load(serve(spell=tokens.token_str, takes_ids=False, shape="names"))
    half = tokens.encode("日")[:-1]
    assert "\ufffd" in tokens.decode(half)
    with pytest.raises(Unsupported, match="inside of a character"):
        await steps(engine, half)
    await engine.aclose()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ({"raw": False}, {}, "change with the temperature"),
        ({"max_model_len": None}, {}, "set `context_length`"),
        ({"model": "other"}, {}, "cannot be used"),
        ({"most_logprobs": 0}, {}, "too many logprobs"),
        ({}, {"plugin": True}, "does not run Waver's plugin"),
    ],
)
async def test_what_cannot_be_used(
    serve: Callable[..., Wire], kind: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    wire = serve(**kind)
    if kind.get("model"):

        async def chat_only(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
            await answer(writer, 404, {"error": {"message": "use the chat endpoint"}})

        wire.reply = chat_only
        wire.model = "small"
    with pytest.raises(ValueError, match="engine 'up'") as caught:
        await load(wire, **options)
    assert said in str(caught.value)


async def test_context_length(serve: Callable[..., Wire]) -> None:
    for configured, told, length in ((None, 300, 300), (200, 300, 200), (400, 300, 300), (50, None, 50)):
        engine = await load(serve(max_model_len=told), context_length=configured)
        assert engine.context_length == length
        await engine.aclose()


async def test_tls(serve: Callable[..., Wire], tmp_path: Path) -> None:
    """A certificate of its own is accepted where it is named, and nowhere else."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    command += ["-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=60)
    wire = serve(certificate=(str(certificate), str(key)))
    with pytest.raises(ValueError, match="CERTIFICATE_VERIFY_FAILED"):
        await load(wire)
    for options in ({"ca_file": str(certificate)}, {"verify": False}):
        engine = await load(wire, **options)
        assert len(await steps(engine)) == 4
        await engine.aclose()


def test_no_key_in_an_address() -> None:
    with pytest.raises(ValueError, match="base_url"):
        UpstreamConfig(base_url="https://me:secret@host/v1", model="m")


KEYS = "content tokens token_logprobs top_logprobs trace id token logprob entropy bytes".split()
names = st.sampled_from(["token_id:3", "a", "bytes:\\xe6"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(logprobs=anything, waver=anything)
def test_nonsense_is_an_engine_error(tokens: TokenText, logprobs: Any, waver: Any) -> None:
    parser = TokenParser("the upstream", tokens)
    with suppress(EngineError):
        for event in parser.choice({"logprobs": logprobs, "waver": waver}):
            step = parser.step(event, "e", 3)
            low, high = step.entropy_bounds or (step.entropy, step.entropy)
            assert 0 <= low <= step.entropy <= high
            assert 0 <= step.token < tokens.vocab_size


async def test_closing_ends_a_check_that_was_asked_for_at_that_moment() -> None:
    async def is_up() -> bool:
        await asyncio.sleep(60)
        return True

    health = HealthCheck(is_up, lambda since: None, 10)
    health.start()
    await asyncio.sleep(0.01)
    health.check_now()
    async with asyncio.timeout(5):
        await health.aclose()
    assert not health.alive
