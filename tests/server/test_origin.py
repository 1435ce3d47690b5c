"""Pages elsewhere can make a browser send requests; without keys nothing but `Host` and `Origin` tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from waver.server.app import THIS_MACHINE
from waver.server.origin import OriginMiddleware, place

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}


def refused(response: httpx.Response, code: str) -> None:
    assert response.status_code == 403, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert "x-request-id" in response.headers


def test_a_page_elsewhere_stores_nothing(running: Any) -> None:
    with running.http() as http:
        evil = {"origin": "https://evil.example"}
        assert http.post("/v1/collections", json={"name": "mine"}).status_code in (200, 409)
        before = http.get("/v1/collections/mine").json()
        file = {"file": ("a.txt", b"Buy at evil.example.", "text/plain")}
        for path in ("/v1/collections/mine/documents", "/v1/collections/none/documents"):
            refused(http.post(path, files=file, headers=evil), "origin_not_allowed")
            content = b'{"documents": [{"id": "a", "text": "x"}]}'
            simple = {**evil, "content-type": "text/plain"}
            refused(http.post(path, content=content, headers=simple), "origin_not_allowed")
        for origin in ("null", "https://evil.example:8000", "http://localhost.evil.example", "", "http://[::1"):
            refused(http.post(CHAT, json=HELLO, headers={"origin": origin}), "origin_not_allowed")
        assert http.get("/v1/collections/mine").json() == before
        http.delete("/v1/collections/mine")


def test_a_name_that_was_rebound_is_not_served(running: Any) -> None:
    with running.http() as http:
        for host in (
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "192.168.1.4",
            "a@127.0.0.1",
            "[::",
        ):
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/")):
                refused(http.request(method, path, headers={"host": host}), "host_not_allowed")
            assert http.get("/health", headers={"host": host}).status_code == 200


def test_our_own_page_and_pages_of_this_machine_are_served(running: Any) -> None:
    with running.http() as http:
        port = running.url.rpartition(":")[2]
        for host, origin in (
            (f"127.0.0.1:{port}", running.url),
            (f"localhost:{port}", f"http://localhost:{port}"),
            ("[::1]:80", "http://[::1]"),
            ("LOCALHOST", "http://localhost:3000"),
            ("waver.localhost", "http://waver.localhost"),
        ):
            answer = http.post(CHAT, json=HELLO, headers={"host": host, "origin": origin})
            assert answer.status_code == 200, (host, origin, answer.text)


def test_configured_names_and_origins_are_served(start: Callable[..., Any]) -> None:
    running = start(allowed_hosts=["ai.example.org", "*.lan"], cors_origins=["https://app.example"])
    with running.http() as http:
        for host, origin, served in (
            ("ai.example.org", "https://ai.example.org", True),
            ("127.0.0.1:8000", "https://ai.example.org", True),  # a proxy that rewrites Host
            ("box.lan:8000", "http://box.lan:8000", True),
            ("lan", None, False),
            ("localhost", "https://app.example", True),
            ("ai.example.org", "https://evil.example", False),
        ):
            headers = {"host": host} | ({"origin": origin} if origin else {})
            answer = http.post(CHAT, json=HELLO, headers=headers)
            assert answer.status_code == (200 if served else 403), (host, origin, answer.text)
        preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
        assert http.options(CHAT, headers=preflight).status_code == 200


@pytest.mark.parametrize(
    ("bound", "hosts", "host", "served"),
    [
        ("0.0.0.0", [], "10.0.0.7:8000", True),
        ("::", [], "[fe80::1]:8000", True),
        ("0.0.0.0", [], "waver-cpu:8000", False),
        ("0.0.0.0", ["waver-cpu"], "waver-cpu:8000", True),
        ("box", [], "Box.", True),
        ("127.0.0.1", [], "10.0.0.7", False),
        ("127.0.0.1", ["*"], "evil.example", True),
        ("0.0.0.0", ["ai.example.org"], "evil.example", False),
        ("0.0.0.0", ["ai.example.org"], "AI.example.org:443", True),
    ],
)
async def test_hosts(bound: str, hosts: list[str], host: str, served: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guarded = OriginMiddleware(app, bound, hosts, [], THIS_MACHINE)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url=f"http://{host}") as http:
        assert (await http.get("/v1/models")).status_code == (200 if served else 403)


def test_places() -> None:
    assert place("Example.org.:443") == place("example.org") == ("example.org", None)
    assert place("[::1]:8000") == ("::1", 8000)
    for wrong in ("", "a/b", "a@b", "a:b", "a b", "[::"):
        assert place(wrong)[0] == ""
