"""Requests that are far larger than they look: each is answered soon, and the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import psutil
import pytest
from fastapi import Request
from pydantic import ValidationError

from waver.server.bodies import Bodies
from waver.server.bodies_worker import MOST_KEYS, REFERENCE
from waver.server.chat_schemas import ChatRequest
from waver.server.errors import APIError
from waver.server.multipart import PIECE, form
from waver.server.piecewise import MADE, Listed, pieces
from waver.server.schemas import Body, DocumentsRequest, SearchRequest
from waver.server.texts import TokenizerPool

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
LAG = 2.0
"""Seconds that the event loop may stand still here, where clients and other tests share its cores and its interpreter;
`benchmarks/faults` holds a server of its own against 0.1 s. What these requests did before they were bounded took 2 to
52 s."""


class Lag:
    longest = 0.0


@contextmanager
def loop_lag(running: Any) -> Iterator[Lag]:
    """Measure the longest stall of the server's event loop while the context lasts."""
    found, stop = Lag(), threading.Event()

    async def watch() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            found.longest = max(found.longest, time.perf_counter() - began - 0.005)

    watching = asyncio.run_coroutine_threadsafe(watch(), running.server.loop)
    try:
        yield found
    finally:
        stop.set()
        watching.result(timeout=30)


def schema(content: Any) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": content}}
    return {"messages": HELLO, "model": "small", "policy": [], "max_tokens": 8, "response_format": wanted}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000}, "minItems should be at most"),
        ({"$ref": "#"}, "no value satisfies it"),
        ({"type": "object", "x-guidance": {"whitespace_flexible": True}}, "x-guidance cannot be set"),
        ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "repeats a part"),
        ({"type": "array", "minItems": 10_000, "items": {"type": "array", "minItems": 10_000, "items": {}}}, None),
    ],
)
def test_schemas_that_grow(running: Any, content: Any, reason: str | None) -> None:
    before = psutil.Process().memory_info().rss
    with running.http() as http, loop_lag(running) as lag:
        began = time.perf_counter()
        answer = http.post(CHAT, json=schema(content))
        assert time.perf_counter() - began < 30
    if reason is not None:
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert reason in error["message"]
        assert error["param"] == "response_format.json_schema.schema"
    assert lag.longest < LAG
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "some words " * 350_000}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x", "name": "y" * 3_900_000}]}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}] * 4000}),
        (CHAT, {"messages": [{"role": "user", "content": "a b " * 3500}]}),
        (TEXT, {"prompt": "." * 3_900_000}),
        (TEXT, {"prompt": [7] * 200_000}),
        (TEXT, {"prompt": ["a b c " * 2000] * 30}),
        ("/tokenize", {"prompt": "a" * 3_900_000}),
        ("/tokenize", {"messages": [{"role": "user", "content": " " * 3_900_000}]}),
        ("/detokenize", {"tokens": [7] * 262_000 + [8] * 200}),
    ],
)
def test_texts_beyond_the_context_are_refused_before_they_are_tokenised(running: Any, path: str, body: Any) -> None:
    content = json.dumps(body).encode()
    statuses: list[int] = []

    def send() -> None:
        answer = httpx.post(running.url + path, content=content, headers={"content-type": "application/json"})
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=send) for _ in range(4)]
    began = time.perf_counter()
    with loop_lag(running) as lag:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(statuses) <= {400, 413}
    assert len(statuses) == 4
    assert time.perf_counter() - began < 30
    assert lag.longest < LAG


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": [' + b"1," * 1_900_000 + b"1]}",
        b'{"prompt": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
        b'{"prompt": "' + b"\\n" * 1_900_000 + b'"}',
        b'{"prompt": ["' + b'","' * 1_300_000 + b'"]}',
    ],
)
def test_bodies_of_many_values_leave_the_loop_alone(running: Any, content: bytes) -> None:
    with running.http() as http, loop_lag(running) as lag:
        answer = http.post(TEXT, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413), answer.text
    assert lag.longest < LAG


def test_an_answer_that_lists_too_much_is_refused(http: httpx.Client) -> None:
    body = {"prompt": ["a b c " * 100] * 16, "n": 32, "echo": True, "logprobs": 20, "max_tokens": 1}
    answer = http.post(TEXT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprobs"
    assert "at most 1048576" in answer.json()["error"]["message"]


def test_policies_that_multiply_with_n_are_refused(http: httpx.Client) -> None:
    policy = [{"name": "l_rag", "collection": "any", "gate": "seakr", "samples": 64}]
    answer = http.post(CHAT, json={"messages": HELLO, "model": "small", "n": 32, "policy": policy})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "policy[0].samples"
    assert "64 sequences for each of 32 choices" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_large_answer_is_made_and_written_in_pieces(running: Any, stream: bool) -> None:
    body = {
        "model": "small", "policy": [], "prompt": "1 2 3 4 " * 100, "n": 32, "echo": True, "logprobs": 20,
        "max_tokens": 1, "stream": stream,
    }  # fmt: skip
    with running.http() as http, loop_lag(running) as lag:
        size = 0
        with http.stream("POST", TEXT, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            last = b""
            for block in answer.iter_bytes():
                size += len(block)
                last = (last + block)[-4096:]
    assert size > 4 * 2**20
    assert last.rstrip().endswith(b"[DONE]" if stream else b"}")
    assert lag.longest < LAG


def test_pieces_are_the_json_of_a_value() -> None:
    tokens = [{"token": str(i), "top": [{"a": i}] * 3} for i in range(150)]
    value = {"choices": [{"index": 0, "logprobs": {"content": tokens}, "nan": float("nan")}, {}], "é": ["\u2028"] * 200}
    found = list(pieces(value))
    assert json.loads(b"".join(found)) == json.loads(json.dumps(value).replace("NaN", "null"))
    assert max(map(len, found)) < 8000
    assert [json.loads(b"".join(pieces(each))) for each in ([], {}, None, [[]], "a")] == [[], {}, None, [[]], "a"]


def test_a_long_list_is_made_while_it_is_written() -> None:
    made = list[int]()

    def entry(item: int) -> dict[str, int]:
        made.append(item)
        return {"i": item}

    value = {"content": Listed(range(10 * MADE), entry), "none": Listed([], entry)}
    found = []
    for piece in pieces({"choices": [value]}):
        found.append(piece)
        assert len(made) <= b"".join(found).count(b'"i"')  # none is made before it is written
    assert json.loads(b"".join(found)) == {"choices": [{"content": [{"i": i} for i in range(10 * MADE)], "none": []}]}
    assert max(map(len, found)) < 40 * MADE


async def test_an_answer_that_is_there_is_not_refused_for_want_of_a_thread() -> None:
    pool, few = TokenizerPool(1, None), TokenizerPool(1, 0)
    try:
        assert await asyncio.gather(*(pool.run(len, "a" * i) for i in range(50))) == list(range(50))
        done = await asyncio.gather(*(few.run(len, "a") for _ in range(3)), return_exceptions=True)
        assert sum(isinstance(each, APIError) and each.status == 429 for each in done) == 2
    finally:
        pool.close()
        few.close()


def test_a_stream_that_is_never_read_is_cut_off(start: Callable[..., Any]) -> None:
    running = start(write_timeout=0.5)
    body = {
        "model": "small", "policy": [], "prompt": "1 2 3 4 " * 100, "n": 32, "echo": True, "logprobs": 20,
        "max_tokens": 1, "stream": True,
    }  # fmt: skip
    content = json.dumps(body).encode()
    host, port = running.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        connection.sendall(f"{head}\r\n\r\n".replace("Host: x", f"Host: {host}").encode() + content)
        deadline = time.monotonic() + 30
        while running.runtime.admission.running == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.idle(within=30)
        connection.settimeout(60)
        received = b""
        with suppress(ConnectionResetError):
            while block := connection.recv(65536):
                received += block
        assert len(received) < 4 * 2**20
        assert b"[DONE]" not in received
    assert running.idle(within=30)


def test_bodies_wait_for_room_before_they_are_read(start: Callable[..., Any]) -> None:
    running = start(max_total_body_bytes=2**20, body_timeout=2.0)
    host, port = running.url.removeprefix("http://").split(":")
    size = 900_000
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        head = (
            f"POST {TEXT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
        )
        slow.sendall(head.encode() + b'{"prompt": "')
        time.sleep(0.5)
        began = time.perf_counter()
        answer = httpx.post(running.url + TEXT, json={"prompt": "x" * size}, timeout=30)
        assert time.perf_counter() - began > 1.0  # until the slow one had its 408
        assert answer.status_code == 400, answer.text
        assert slow.recv(65536).startswith(b"HTTP/1.1 408")


async def test_an_object_of_too_many_keys_is_refused() -> None:
    bodies = Bodies(100_000)
    try:
        for wrong in (many := {f"key {i}": 0 for i in range(MOST_KEYS + 1)}, [{"deep": many}]):
            with pytest.raises(APIError, match=f"more than {MOST_KEYS} keys") as refused:
                await bodies.parse(json.dumps(wrong).encode())
            assert refused.value.status == 413
        many.popitem()
        assert await bodies.parse(json.dumps(many).encode()) == many
    finally:
        bodies.close()


async def test_a_form_that_nearly_ends_all_the_time_lets_others_go_on() -> None:
    """Every `CRLF--` may begin the boundary and is a call of the parser."""
    turns = 0
    body = b'--b\r\ncontent-disposition: form-data; name="text"\r\n\r\n' + b"\r\n--" * 2**16 + b"\r\n--b--\r\n"

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    read = await form(Request({"type": "http", "method": "POST", "headers": headers}, receive), 1, 1)
    assert read["text"] == "\r\n--" * 2**16
    beside.cancel()
    assert turns > len(body) // PIECE


async def test_large_bodies_are_parsed_as_small_ones_are() -> None:
    bodies = Bodies(1000)
    value = {
        "text": 'a "quoted" é🙂\n' * 20_000,
        "list": [1, -2.5, None, True, {"deep": ["x" * 500]}],
        "h": "\ud800",
    }
    try:
        data = json.dumps(value).encode()
        assert len(data) > 2**16
        assert await bodies.parse(data) == value
        with pytest.raises(json.JSONDecodeError, match="Expecting"):
            await bodies.parse(b"[" + b" " * 2**17 + b"}")
        with pytest.raises(APIError, match="UTF-8"):
            await bodies.parse(b'"' + b"\xff" * 2**17 + b'"')
        for hostile in ([0] * 50_000, {REFERENCE: 0, "x": "y" * 2**17}, {"k" * 5000: "x" * 2**17}):
            with pytest.raises(APIError) as refused:
                await bodies.parse(json.dumps(hostile).encode())
            assert refused.value.status == 413
    finally:
        bodies.close()


@pytest.mark.parametrize(
    "document",
    [
        {"title": "t" * 2000},
        {"id": "i" * 2000},
        {"metadata": {"k": "v" * 20_000}},
        {"metadata": {f"k{i}": i for i in range(65)}},
    ],
)
def test_what_comes_back_with_every_passage_is_bounded(document: dict[str, Any]) -> None:
    DocumentsRequest.model_validate({"documents": [{"id": "a", "text": "x" * 10**6, "title": "t"}]})
    with pytest.raises(ValidationError):
        DocumentsRequest.model_validate({"documents": [{"id": "a", "text": "x", **document}]})


MANY = 20_000
WRONG = {f"k{i}": {} for i in range(MANY)}
CALLS = {"role": "assistant", "content": "", "tool_calls": [{}] * MANY}


@pytest.mark.parametrize(
    ("kind", "body", "place"),
    [
        (ChatRequest, {"logit_bias": WRONG}, "logit_bias"),
        (ChatRequest, {"stop_token_ids": [-1] * MANY}, "stop_token_ids"),
        (ChatRequest, {"stop": [None] * MANY}, "stop"),
        (ChatRequest, {"messages": [CALLS]}, "messages"),
        (ChatRequest, {"messages": [{}] * MANY}, "messages"),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}, "messages"),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * MANY}]}, "messages"),
        (ChatRequest, {"policy": [{"name": "top_p", **WRONG}]}, "policy"),
        (ChatRequest, {"chat_template_kwargs": WRONG}, "chat_template_kwargs"),
        (SearchRequest, {"query": "a", "filter": WRONG}, "filter"),
        (SearchRequest, {"query": "a", "filter": {"k": [{}] * MANY}}, "filter"),
        (DocumentsRequest, {"documents": [{"id": "a", "text": "a", "metadata": WRONG}]}, "documents"),
        (DocumentsRequest, {"documents": [{}] * MANY}, "documents"),
    ],
)
def test_entries_that_are_all_wrong_are_not_described_one_by_one(kind: type[Body], body: Any, place: str) -> None:
    given = {"messages": HELLO, **body} if kind is ChatRequest else body
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(given)
    assert refused.value.error_count() < 200
    assert {error["loc"][0] for error in refused.value.errors()} == {place}


@pytest.mark.parametrize("value", ["\ud800", ["\ud800"], {"a": {"\ud800": 1}}])
@pytest.mark.parametrize("field", ["policy", "chat_template_kwargs"])
def test_half_a_surrogate_is_found_wherever_it_hides(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="surrogate"):
        ChatRequest.model_validate({"messages": HELLO, field: {"k": value} if field != "policy" else value})
