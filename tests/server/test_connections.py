"""Connections that never say what they want: cut by a deadline, and closed first where others want in."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from waver.server.connections import connection_limits

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
BUSY = {
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 900,
    "ignore_eos": True,
    "stream": True,
}


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


@pytest.fixture(scope="module")
def hasty(start: Callable[..., Any]) -> Any:
    return start(header_timeout=0.6, idle_timeout=0.6, max_connections=8)


def ended(connection: socket.socket, within: float) -> bytes:
    """Return what is sent until the server closes, which it does within so many seconds."""
    connection.settimeout(within)
    out = b""
    with suppress(ConnectionResetError):  # where something was sent that the server had not read
        while block := connection.recv(65536):
            out += block
    return out


def test_silence_is_cut(hasty: Any) -> None:
    with socket.create_connection(address(hasty.url)) as connection:
        assert ended(connection, within=30) == b""


def test_slow_headers_are_cut_however_they_trickle(hasty: Any) -> None:
    with socket.create_connection(address(hasty.url)) as connection:
        connection.sendall(HEAD + b"X: ")
        closing = threading.Event()

        def trickle() -> None:
            while not closing.wait(0.1):
                connection.send(b"a")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            began = time.monotonic()
            answer = connection.recv(65536)
            assert time.monotonic() - began < 30
        finally:
            closing.set()
            thread.join()
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "headers_timeout"


def healthy(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("rest", [b"", HEAD])
def test_idle_connections_and_slow_second_requests_are_cut(hasty: Any, rest: bytes) -> None:
    with socket.create_connection(address(hasty.url)) as connection:
        healthy(connection)
        time.sleep(0.2)
        healthy(connection)
        connection.sendall(rest)
        assert ended(connection, within=30).startswith(b"HTTP/1.1 408" if rest else b"")


def test_a_body_that_nobody_reads_is_cut(hasty: Any) -> None:
    with socket.create_connection(address(hasty.url)) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 60:
                connection.sendall(b"a")
                time.sleep(0.1)
        assert time.monotonic() - began < 30


def test_who_waits_gives_way_and_who_is_at_work_does_not(hasty: Any) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(hasty.http(limits=httpx.Limits(max_connections=None)))
        silent = [stack.enter_context(socket.create_connection(address(hasty.url))) for _ in range(8)]
        time.sleep(0.2)
        streams = [stack.enter_context(client.stream("POST", "/v1/chat/completions", json=BUSY)) for _ in range(8)]
        lines = [stream.iter_lines() for stream in streams]
        assert [next(each) for each in lines]
        assert [ended(each, within=30) for each in silent] == [b""] * 8
        refused = httpx.get(f"{hasty.url}/v1/models")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many"
        assert refused.headers["retry-after"]
        assert all(list(each)[-2] == "data: [DONE]" for each in lines)
    assert httpx.get(f"{hasty.url}/v1/models").status_code == 200


def test_the_limit_of_open_files_bounds_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most, backlog in (
        (256, 192, 32),
        (1024, 768, 128),
        (2**20, 4096, 2048),
        (resource.RLIM_INFINITY, 4096, 2048),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert connection_limits(4096) == (most, backlog)


@contextmanager
def few_files(config: dict[str, Any], folder: Path, files: int) -> Iterator[tuple[str, Path]]:
    """A server in a process that may have so many open files: its address, and the file that it logs to."""
    (folder / "waver.yaml").write_text(yaml.safe_dump(config))
    log = folder / "log"
    code = (
        "import resource, sys; from waver.server.run import serve; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files})); serve(sys.argv[1])"
    )
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", code, str(folder / "waver.yaml")], stderr=out)
    try:
        deadline = time.monotonic() + 90
        while '"ready"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield log.read_text().split("listens on ")[1].split()[0], log
    finally:
        process.terminate()
        process.wait(30)


def test_hundreds_of_idle_and_slow_connections_keep_nobody_out(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    config = {**tiny_config, "server": {"port": 0, "header_timeout": 10.0}}
    with few_files(config, tmp_path, files=256) as (url, log), ExitStack() as stack:
        attackers = []
        for i in range(600):
            attackers.append(stack.enter_context(socket.create_connection(address(url), timeout=60)))
            if i % 2:
                with suppress(OSError):
                    attackers[-1].sendall(HEAD + b"X-Slow: ")
            if i % 100 == 99:
                body = {"model": "small", "prompt": "hello", "max_tokens": 1}
                assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        assert "connections are at their limit" in log.read_text()
        for each in attackers:
            answer = ended(each, within=60)
            assert not answer or answer.startswith(b"HTTP/1.1 408")
        assert httpx.get(f"{url}/health").status_code == 200
