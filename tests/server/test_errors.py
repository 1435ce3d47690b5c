"""Bad input of every kind gives an OpenAI error object, and the server goes on serving."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _still_serving(http: httpx.Client) -> Iterator[None]:
    yield
    answer = http.post(CHAT, json={"messages": HELLO, "max_tokens": 1})
    assert answer.status_code == 200, answer.text


def check(response: httpx.Response, status: int, param: str | None = None) -> str:
    """The error object's message, after its form was checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    message: str = error["message"]
    assert message
    for internal in ("Traceback", "<class", "object at 0x", "pydantic", "Error(", "{'", "/site-packages/"):
        assert internal not in message
    assert "x-request-id" in response.headers
    return message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [*HELLO, {"role": "user", "content": "\ud800"}]}, "messages[1].content"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -3}, "max_completion_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 9}, "presence_penalty"),
        ({"frequency_penalty": -9}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"seed": 10**30}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a"] * 10**5}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(i): 1 for i in range(5000)}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 3}, "stream_options"),
        ({"timeout": -1}, "timeout"),
        ({"policy": 5}, "policy"),
        ({"policy": [5]}, "policy[0]"),
        ({"policy": [{"name": "nope"}]}, "policy[0].name"),
        ({"policy": [{"name": "ead", "threshold": "high"}]}, "policy[0].threshold"),
        ({"policy": [{"name": "ead", "threshold": -1}]}, "policy[0].threshold"),
        ({"policy": [{"name": "ead", "colour": 1}]}, "policy[0].colour"),
        ({"policy": [{"name": "ead", "small": "tiny"}]}, "policy[0].small"),
        ({"policy": [{"name": "ead"}, {"name": "random_switch"}]}, "policy[1]"),
        ({"policy": [{"name": "ead"}] * 10**4}, "policy"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": {}}}, "chat_template_kwargs"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": [{"role": "user", "content": "a " * 5000}]}, "messages"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_bad_fields(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    body = body if not body or "messages" in body else {"messages": HELLO, **body}
    for stream in (False, True):
        began = time.perf_counter()
        response = http.post(
            CHAT, content=json.dumps({"stream": stream, **body}), headers={"content-type": "application/json"}
        )
        message = check(response, 400, param)
        assert len(message) < 1000
        assert time.perf_counter() - began < 30


def test_message_names_the_allowed_range(http: httpx.Client) -> None:
    message = check(http.post(CHAT, json={"messages": HELLO, "temperature": 9}), 400, "temperature")
    assert message == "temperature should be less than or equal to 2."
    message = check(http.post(CHAT, json={"messages": HELLO, "stop": ["a"] * 17}), 400, "stop")
    assert message == "stop should have at most 16 items."
    assert "ead" in check(http.post(CHAT, json={"messages": HELLO, "policy": [{"name": "x"}]}), 400, "policy[0].name")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b'"text"', "application/json"),
        (b"5", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "application/json"),
        (b'{"messages": ' + b"9" * 5000 + b"}", "application/json"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "text/plain"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', ""),
        (b"a=b", "application/x-www-form-urlencoded"),
        (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x"),
    ],
)
def test_trap_12_bodies_that_are_no_json_object(http: httpx.Client, content: bytes, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    response = http.post(CHAT, content=content, headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("padding", [0, 100_000])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"messages": "你好'.encode("gbk"), "not text in UTF-8: the byte 0xc4"),
        ('{"messages": "café'.encode("latin-1"), "not text in UTF-8: the byte 0xe9"),
        (gzip.compress(b'{"messages": []}'), "compressed with gzip"),
        (b'{"seed": ' + b"9" * 5000, "more than 4300 digits"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a" 1', "expecting ':' delimiter at character 5"),
    ],
    ids=["GBK", "Latin-1", "gzip", "digits", "depth", "colon"],
)
def test_a_body_that_cannot_be_parsed_is_told_why(http: httpx.Client, content: bytes, words: str, padding: int) -> None:
    content += b" " * padding  # large bodies are parsed in a process of their own
    message = check(http.post(CHAT, content=content, headers={"content-type": "application/json"}), 400)
    assert words in message


def test_a_compressed_body_is_415(http: httpx.Client) -> None:
    content = gzip.compress(json.dumps({"messages": HELLO}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    message = check(http.post(CHAT, content=content, headers=headers), 415)
    assert "gzip" in message
    answer = http.post(CHAT, json={"messages": HELLO, "max_tokens": 1}, headers={"content-encoding": "identity"})
    assert answer.status_code == 200


@pytest.mark.parametrize("repeats", [700, 5000, 100_000])
def test_an_overflow_is_told_in_the_words_that_frameworks_look_for(http: httpx.Client, repeats: int) -> None:
    for path, prompt in ((CHAT, {"messages": [{"role": "user", "content": "a b " * repeats}]}),
                         ("/v1/completions", {"prompt": "a b " * repeats})):  # fmt: skip
        answer = http.post(path, json=prompt)
        message = check(answer, 400, next(iter(prompt)))
        assert "maximum context length is 1024 tokens" in message
        assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(http: httpx.Client, number: str) -> None:
    body = '{"messages": [{"role": "user", "content": "x"}], "temperature": NUMBER}'.replace("NUMBER", number)
    check(http.post(CHAT, content=body, headers={"content-type": "application/json"}), 400, "temperature")


def test_trap_12_a_megabyte_on_one_line(http: httpx.Client) -> None:
    response = http.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 10**6}]})
    check(response, 400, "messages")


def test_ten_megabytes(http: httpx.Client) -> None:
    check(http.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 10**7}]}), 413)


def test_ten_megabytes_in_chunks(http: httpx.Client) -> None:
    chunks = (b"x" * 10**5 for _ in range(100))
    check(http.post(CHAT, content=chunks, headers={"content-type": "application/json"}), 413)


@pytest.mark.parametrize("size", [40_000, 1_000_000])
def test_huge_headers(running: Any, size: int) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"a" * size + b"\r\n\r\n"
        try:
            connection.sendall(head)
        except OSError:
            assert size > 64 * 1024
        answer = b""
        try:
            while block := connection.recv(65536):
                answer += block
                if b"}}" in answer:
                    break
        except ConnectionResetError:
            assert size > 64 * 1024
    if size < 64 * 1024 or answer:
        assert answer.startswith(b"HTTP/1.1 431")
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"]


def test_nonsense_on_the_wire(running: Any) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"]


def test_an_offer_to_speak_http_2_does_not_cost_the_body(running: Any) -> None:
    """Java's own client makes it with every first request of a connection."""
    host, port = running.url.removeprefix("http://").split(":")
    body = json.dumps({"messages": HELLO, "max_tokens": 1}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for _ in range(2):
            connection.sendall(head.encode() + body)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["usage"]["completion_tokens"] == 1


def test_unknown_model_preset_route_and_method(http: httpx.Client) -> None:
    for model in ("gpt-4", "waver/none", "waver/", "x" * 5000):
        message = check(http.post(CHAT, json={"messages": HELLO, "model": model}), 404, "model")
        assert "waver/frugal" in message
        assert len(message) < 500
    check(http.post(CHAT, json={"messages": HELLO, "policy": "none"}), 404, "policy")
    check(http.get("/v1/nothing"), 404)
    check(http.get("/v1/models/nope"), 404, "model")
    assert "allow" in http.get(CHAT).headers
    check(http.get(CHAT), 405)


def test_sdk_raises_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="small", messages=HELLO, temperature=7)
    assert bad.value.param == "temperature"


def test_unknown_fields_are_accepted(http: httpx.Client) -> None:
    body = {"messages": HELLO, "max_tokens": 1, "user": "u", "metadata": {}, "store": False, "no_such_field": [1]}
    assert http.post(CHAT, json=body).status_code == 200


def test_trap_13_deadline_is_504_and_not_retried(http: httpx.Client) -> None:
    body = {"messages": HELLO, "max_tokens": 900, "ignore_eos": True, "timeout": 0.05}
    response = http.post(CHAT, json=body)
    check(response, 504)
    assert response.headers["x-should-retry"] == "false"


def test_trap_10_error_in_a_begun_stream(http: httpx.Client) -> None:
    body = {"messages": HELLO, "max_tokens": 900, "ignore_eos": True, "timeout": 0.4, "stream": True}
    response = http.post(CHAT, json=body)
    assert response.status_code == 200
    events = [line.removeprefix("data: ") for line in response.text.split("\n") if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "timeout"
    assert all(not json.loads(event).get("error") for event in events[:-2])


def test_trap_13_full_queue_is_429(start: Callable[..., Any]) -> None:
    running = start(max_concurrency=1, max_queue=0)
    body = {"messages": HELLO, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with running.http() as http:
        with http.stream("POST", CHAT, json=body) as busy:
            lines = busy.iter_lines()  # kept: a generator that is collected closes the connection
            next(lines)
            for stream in (False, True):
                response = http.post(CHAT, json={"messages": HELLO, "max_tokens": 1, "stream": stream})
                check(response, 429)
                assert 0 < int(response.headers["retry-after"]) <= 120
            refused_unread = http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
            check(refused_unread, 429)
            assert http.post("/v1/messages", json={}).json()["error"]["type"] == "rate_limit_error"
            check(http.post("/v1/tokenize", json={"prompt": 1}), 400, "prompt")  # waits for no slot
        assert running.idle(within=30)
        assert http.post(CHAT, json={"messages": HELLO, "max_tokens": 1}).status_code == 200


def test_waiting_in_the_queue_counts_towards_the_deadline(start: Callable[..., Any]) -> None:
    running = start(max_concurrency=1, max_queue=4)
    body = {"messages": HELLO, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with running.http() as http, http.stream("POST", CHAT, json=body) as busy:
        lines = busy.iter_lines()
        next(lines)
        check(http.post(CHAT, json={"messages": HELLO, "stream": True, "timeout": 0.1}), 504)


def test_a_body_that_trickles_in_is_cut(start: Callable[..., Any]) -> None:
    running = start(body_timeout=0.3)
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_dead_engine_is_503(start: Callable[..., Any]) -> None:
    running = start()
    asyncio.run(running.runtime.engines["large"].aclose())
    with running.http() as http:
        for stream in (False, True):
            response = http.post(CHAT, json={"messages": HELLO, "model": "large", "stream": stream})
            check(response, 503)
            assert 0 < int(response.headers["retry-after"]) <= 120
        assert http.post(CHAT, json={"messages": HELLO, "model": "small", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(("mistakes", "status"), [(200_000, 400), (500_000, 413)])
@pytest.mark.parametrize("field", ["messages", "prompt"])
def test_a_million_mistakes_are_answered_quickly(http: httpx.Client, field: str, mistakes: int, status: int) -> None:
    path = CHAT if field == "messages" else "/v1/completions"
    content = json.dumps({field: [True] * mistakes})
    began = time.perf_counter()
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert time.perf_counter() - began < 30
