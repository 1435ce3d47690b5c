"""A client that leaves frees its work in every engine within one step, whenever it leaves."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

HELLO = [{"role": "user", "content": "hello"}]
LONG = {"messages": HELLO, "max_tokens": 1000, "ignore_eos": True}
CASES = {
    "before the first token": ({"stream": True}, 0),
    "mid-stream": ({"stream": True}, 4),
    "whole answer": ({"stream": False}, 0),
    "three choices": ({"stream": True, "n": 3}, 6),
    "inside a hand-over": ({"stream": True, "policy": [{"name": "random_switch", "rate": 0.5}]}, 3),
    "inside a hand-over, eager": (
        {
            "stream": True,
            "policy": [{"name": "ead", "threshold": 2.5, "window": 1, "min_tokens": 1, "threshold_down": None}],
        },
        3,
    ),
}


def leave(running: Any, body: dict[str, Any], events: int) -> None:
    """Send a request, read so many events, and close the connection."""
    host, port = running.url.removeprefix("http://").split(":")
    content = json.dumps({**LONG, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        read = b""
        while read.count(b"data: ") < events:
            read += connection.recv(65536)


@pytest.mark.parametrize("case", CASES)
def test_leaving_frees_the_work(running: Any, case: str) -> None:
    body, events = CASES[case]
    for turn in range(17):
        leave(running, body, events)
        if not events:
            time.sleep(0.01 * turn)  # at another moment each time
        assert running.idle(within=30), case
    with running.openai() as client:
        assert client.chat.completions.create(model="waver/frugal", messages=HELLO, max_tokens=2).choices


def test_leaving_while_waiting_frees_the_place(start: Any) -> None:
    running = start(max_concurrency=1, max_queue=8)
    with running.http() as http, http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as busy:
        lines = busy.iter_lines()
        next(lines)
        for stream in (True, False):
            leave(running, {"stream": stream}, 0)
        deadline = time.monotonic() + 60
        while running.runtime.admission.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.runtime.admission.waiting == 0
    assert running.idle(within=30)


def test_trap_28_headers_leave_before_the_first_token(running: Any) -> None:
    with running.http() as http:
        began = time.perf_counter()
        with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
            waited = time.perf_counter() - began
            assert response.headers["content-type"].startswith("text/event-stream")
    assert waited < 30
    assert running.idle(within=30)


def test_trap_14_keep_alive_is_a_comment(start: Any) -> None:
    running = start(keepalive=0.0005, max_concurrency=1)  # less than a decoding step takes
    with running.http() as http:
        text = http.post("/v1/chat/completions", json={**LONG, "max_tokens": 60, "n": 4, "stream": True}).text
    lines = text.split("\n")
    assert {line.split(" ")[0] for line in lines} == {"", "data:", ":"}
    assert {line for line in lines if line.startswith(":")} == {": keep-alive"}
    assert text.endswith("data: [DONE]\n\n")
    with running.openai() as client:
        stream = client.chat.completions.create(model="large", messages=HELLO, max_tokens=50, n=4, stream=True)
        assert all(chunk.choices for chunk in stream)
