"""Keys: one way in, for every route but the probes and the page."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from waver.server.auth import OPEN_PATHS, AuthMiddleware
from waver.server.keys import ApiKey
from waver.server.preflight import exposure_problems
from waver.server.settings import ServerConfig
from waver.server.tenants.database import Database
from waver.server.tenants.key_ring import KeyRing

KEY = "sk-first-key"
SECOND = "sk-schlüssel"


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Any]) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAVER_TEST_KEYS", f"{KEY}, {SECOND},")
        yield start(api_keys_env="WAVER_TEST_KEYS", cors_origins=["https://app.example"])


def test_every_route_but_four_needs_a_key(guarded: Any) -> None:
    described = guarded.server.config.app.openapi()["paths"].keys()
    routes = {*described, "/nothing/here", "/docs", "/openapi.json", "/metrics", "/tokenize", "/detokenize"}
    with guarded.http() as http:
        for path in routes - OPEN_PATHS:
            for method in ("GET", "POST", "DELETE"):
                response = http.request(method, path.replace("{model}", "small"))
                assert response.status_code == 401, (method, path)
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        for path in OPEN_PATHS:
            assert http.get(path).status_code in (200, 503), path


def test_sdk_with_a_key(guarded: Any) -> None:
    assert guarded.openai(api_key=KEY).models.list().data
    with pytest.raises(openai.AuthenticationError):
        guarded.openai(api_key="wrong").models.list()


def test_second_key_in_utf8(guarded: Any) -> None:
    with guarded.http() as http:
        assert http.get("/v1/models", headers={"authorization": f"Bearer {SECOND}".encode()}).status_code == 200


def test_other_headers_do_not_let_in(guarded: Any) -> None:
    with guarded.http() as http:
        for headers in (
            {"x-api-key": KEY},
            {"api-key": KEY},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"proxy-authorization": f"Bearer {KEY}"},
            {"cookie": f"authorization=Bearer {KEY}"},
            [("authorization", "Bearer x"), ("authorization", f"Bearer {KEY}")],
        ):
            assert http.get("/v1/models", headers=headers).status_code == 401, headers
        assert http.get(f"/v1/models?api_key={KEY}").status_code == 401


def test_anthropics_header_lets_in_where_its_protocol_is_spoken(guarded: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    with guarded.http() as http:
        for path in ("/v1/messages", "//v1/messages/", "/messages/count_tokens"):
            for headers, status in (
                ({"x-api-key": KEY}, 200),
                ({"x-api-key": "wrong"}, 401),
                ({}, 401),
                ([("x-api-key", KEY), ("x-api-key", KEY)], 401),
                ({"x-api-key": KEY, "authorization": "Bearer wrong"}, 401),
            ):
                address = f"{guarded.url}{path}"
                assert http.post(address, json=body, headers=headers).status_code == status, (path, headers)


def test_fuzzed_authorization_is_only_ever_401(guarded: Any) -> None:
    draw = random.Random(1)
    pieces = [
        "Bearer",
        "bearer ",
        " ",
        "'",
        '"',
        "--",
        ";",
        "%00",
        "\\",
        KEY[:-1],
        KEY + "x",
        KEY.upper(),
        "é",
        "$(id)",
    ]
    with guarded.http() as http:
        for _ in range(400):
            value = "".join(draw.choice(pieces) for _ in range(draw.randrange(6))).strip()
            response = http.get("/v1/models", headers={"authorization": value.encode()})
            assert response.status_code == 401, value
            assert KEY not in response.text


async def test_ten_thousand_random_values_are_refused(tmp_path: Path) -> None:
    ring = KeyRing([ApiKey("one", KEY), ApiKey("two", SECOND)], Database(None, tmp_path))
    middleware = AuthMiddleware(None, ring, lambda app: app)  # type: ignore[arg-type]
    draw = random.Random(2)
    for _ in range(10_000):
        value = draw.randbytes(draw.randrange(64))
        assert await middleware.identify([(b"authorization", value)]) is None
        assert await middleware.identify([(b"authorization", b"Bearer " + value)]) is None
    found = await middleware.identify([(b"authorization", b"Bearer " + KEY.encode())])
    assert found is not None
    assert found.name == "one"


def test_trap_27_options_before_keys_and_cors_on_errors(guarded: Any) -> None:
    origin = {"origin": "https://app.example"}
    with guarded.http() as http:
        preflight = {
            **origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        answer = http.options("/v1/chat/completions", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert http.options("/v1/chat/completions").status_code == 204
        assert http.options("/v1/chat/completions").headers["allow"] == "OPTIONS, POST"
        assert http.options("/v1/facts").headers["allow"] == "DELETE, GET, HEAD, OPTIONS, POST"
        assert http.options("/v1/memories/search").headers["allow"] == "OPTIONS, POST"
        refused = http.get("/v1/models", headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        missing = http.get("/nothing", headers={**origin, "authorization": f"Bearer {KEY}"})
        assert missing.status_code == 404
        assert missing.headers["access-control-allow-origin"] == "https://app.example"
        bad = http.post("/v1/chat/completions", json={}, headers={**origin, "authorization": f"Bearer {KEY}"})
        assert (bad.status_code, bad.headers["access-control-allow-origin"]) == (400, "https://app.example")
        assert (
            "access-control-allow-origin" not in http.get("/health", headers={"origin": "https://evil.example"}).headers
        )


def test_with_keys_any_name_is_served(guarded: Any) -> None:
    with guarded.http() as http:
        headers = {"host": "ai.example.org", "origin": "https://evil.example", "authorization": f"Bearer {KEY}"}
        assert http.get("/v1/models", headers=headers).status_code == 200
        assert http.get("/v1/models", headers={**headers, "authorization": ""}).status_code == 401


def test_keys_are_off_without_keys(running: Any) -> None:
    for headers in ({}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": "x"}):
        assert httpx.get(f"{running.v1}/models", headers=headers).status_code == 200


def test_start_is_refused_where_others_can_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAVER_API_KEYS", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        (problem,) = exposure_problems(ServerConfig(host=host))
        assert "WAVER_API_KEYS" in problem.message
        assert not list(exposure_problems(ServerConfig(host=host, allow_no_keys=True)))
    for host in ("127.0.0.1", "::1", "localhost"):
        assert not list(exposure_problems(ServerConfig(host=host)))
    monkeypatch.setenv("WAVER_API_KEYS", "k")
    assert not list(exposure_problems(ServerConfig(host="0.0.0.0")))
