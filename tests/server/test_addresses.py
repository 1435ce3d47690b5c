"""Base URLs that are put together wrongly, absolute request targets, and a proxy's prefix."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from waver.server.addresses import canonical, relative
from waver.server.app import names_below_v1

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "path",
    ["/v1/models/", "//v1/models", "/v1//models", "/v1/v1/models", "/v1/v1/v1/models/", "/models/", "//models"],
)
def test_the_list_of_models_is_found(http: httpx.Client, path: str) -> None:
    assert http.get(f"{http.base_url}".rstrip("/") + path).json() == http.get("/v1/models").json()


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions/", "/v1/v1/chat/completions"])
def test_an_answer_is_found(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"messages": HELLO, "max_tokens": 1})
    assert answer.status_code == 200, answer.text


def test_names_with_slashes_are_left_alone() -> None:
    names = names_below_v1()
    assert {"chat", "completions", "models", "embeddings", "collections"} <= names
    assert names.isdisjoint({"tokenize", "health", "docs", "static", ""})
    for path in ("/v1/collections/c/documents/a//b/", "/static/x//y", "/", "/docs", "/tokenize"):
        assert canonical(path, names) == path
    assert canonical("/v1/models/waver/frugal/", names) == "/v1/models/waver/frugal"
    assert relative("https://host:1/a/b") == ("/a/b", "host:1")
    assert relative("http://host") == ("/", "host")
    assert relative("/http://host") == ("/http://host", None)


def raw(url: str, head: bytes) -> bytes:
    """Send a request's head as it is; the whole answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head + b"Connection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_an_absolute_target_is_served_and_its_host_counts(running: Any) -> None:
    for address in (running.url, running.url.replace("http", "HTTP")):
        answer = raw(running.url, f"GET {address}/v1/models?a=1 HTTP/1.1\r\nHost: localhost\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200"), answer
    foreign = raw(running.url, b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n")
    assert foreign.startswith(b"HTTP/1.1 403"), foreign


def test_behind_a_prefix_everything_is_there_with_and_without_it(start: Callable[..., Any]) -> None:
    running = start(root_path="/waver")
    with running.http() as http:
        for prefix in ("", "/waver"):
            assert len(http.get(f"{prefix}/v1/models").json()["data"]) == 5
            answer = http.post(f"{prefix}/chat/completions", json={"messages": HELLO, "max_tokens": 1})
            assert answer.status_code == 200
            assert http.get(f"{prefix}/health").status_code == http.get(f"{prefix}/static/app.js").status_code == 200
        moved = http.get("/waver")
        assert (moved.status_code, moved.headers["location"]) == (307, "/waver/")
        page, docs = http.get("/waver/").text, http.get("/waver/docs").text
        files = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
        assert len(files) >= 3
        for file in [f"/waver/{each}" for each in files] + re.findall(r'(?:src|href)="(/waver/[^"]+)"', docs):
            assert http.get(file).status_code == 200, file
        assert "'/waver/openapi.json'" in docs
        assert json.loads(http.get("/waver/openapi.json").text)["servers"] == [{"url": "/waver"}]
        assert 'route="/v1/models"' in http.get("/metrics").text
        assert http.get("/waverly/v1/models").status_code == 404
