"""Budgets over HTTP: exact under 64 parallel requests, streams that are left, cut answers, what clients are told."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.conftest import Running, until
from waver.retrieval.embedder import Embedder
from waver.server.tenants.database import Database
from waver.server.tenants.grant import Grant
from waver.server.tenants.stored_keys import StoredKeys

NOON = 1_800_000_000.0 // 86_400 * 86_400 + 43_200
LIMITS: dict[str, dict[str, Any]] = {
    "root": {"role": "admin"},
    "requests": {"requests_per_day": 10},
    "tokens": {"tokens_per_day": 1000},
    "streams": {"tokens_per_day": 2000},
    "three": {"concurrent_requests": 3},
    "cut": {"tokens_per_day": 60, "cut_answers": True},
    "embeds": {"tokens_per_day": 10},
    "bare": {"tokens_per_day": 60},
    "thinks": {"tokens_per_day": 10_000},
    "asks": {"tokens_per_day": 200},
    "leaves": {"tokens_per_day": 10_000},
    "few": {"requests_per_minute": 5, "requests_per_day": 4},
}
STREAM = {"model": "large", "policy": [], "prompt": "1 2 3", "max_tokens": 800, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def keys(state: Path) -> dict[str, str]:
    stored = StoredKeys(Database(None, state))
    return {name: stored.add(name, Grant(**limits), "test")[1] for name, limits in LIMITS.items()}


@pytest.fixture(scope="module")
def server(start: Callable[..., Running], state: Path, keys: dict[str, str], embedder: Embedder) -> Running:
    assert keys
    running = start(config={"state": str(state), "retrieval": {"path": str(state / "collections")}})
    running.runtime.library.embedders["all-MiniLM-L6-v2"] = embedder
    running.runtime.database._clock = lambda: NOON  # no test runs into the next minute
    return running


@pytest.fixture(scope="module")
def root(server: Running, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with server.http(headers={"authorization": f"Bearer {keys['root']}"}) as client:
        yield client


def caller(server: Running, keys: dict[str, str], name: str) -> httpx.Client:
    limits = httpx.Limits(max_connections=64)
    return server.http(headers={"authorization": f"Bearer {keys[name]}"}, limits=limits)


def chat(client: httpx.Client, **more: Any) -> httpx.Response:
    body = {"model": "small", "policy": [], "prompt": "1 2 3", "max_tokens": 10, "ignore_eos": True, **more}
    return client.post("/v1/completions", json=body)


def usage(root: httpx.Client, name: str) -> dict[str, int]:
    """Return what a key has used, once nothing of it runs any more."""
    found: dict[str, int] = {}

    def read() -> bool:
        found.update(root.get(f"/v1/admin/keys/{name}").json()["usage"])
        return found["running"] == 0

    until(read, "the requests to be settled")
    return found


def test_64_requests_at_once_take_the_10_that_are_left(
    server: Running, keys: dict[str, str], root: httpx.Client
) -> None:
    with caller(server, keys, "requests") as client, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: chat(client, max_tokens=1), range(64)))
    assert Counter(each.status_code for each in answers) == {200: 10, 429: 54}
    assert usage(root, "requests")["day_requests"] == 10
    refused = next(each for each in answers if each.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == str(43_200)
    assert refused.headers["x-should-retry"] == "false", "the SDK would not wait until midnight"
    assert refused.headers["x-ratelimit-limit-requests"] == "10"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == "12h0m0s"


def test_64_requests_at_once_spend_exactly_the_tokens(
    server: Running, keys: dict[str, str], root: httpx.Client
) -> None:
    with caller(server, keys, "tokens") as client, ThreadPoolExecutor(64) as pool:
        one = chat(client).json()["usage"]["total_tokens"]
        # Half of them end far below what is reserved for them: that has to come back, or too few would be let in.
        bodies = [
            {"max_tokens": 300, "stop": [*"aeiostn 12345678"]} if i % 2 else {"max_tokens": 10} for i in range(64)
        ]
        answers = list(pool.map(lambda body: chat(client, **body), bodies))
    taken = [each.json()["usage"]["total_tokens"] for each in answers if each.status_code == 200]
    assert {each.status_code for each in answers} <= {200, 429}
    spent = usage(root, "tokens")
    assert spent["day_tokens"] == one + sum(taken) <= 1000
    for refused in (each for each in answers if each.status_code == 429):
        numbers = [int(word) for word in refused.json()["error"]["message"].split() if word.isdecimal()]
        assert numbers[0] > numbers[1], "refused below the limit"


def counted(root: httpx.Client, key: str, kind: str = "") -> int:
    """Return the tokens of a key that the metrics know of, of a kind or of all."""
    lines = root.get("/metrics").text.splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("waver_key_tokens_total")
               and f'key="{key}"' in line and f'kind="{kind}' in line)  # fmt: skip


def test_a_stream_that_is_left_is_charged_for_what_was_made(
    server: Running, keys: dict[str, str], root: httpx.Client
) -> None:
    with caller(server, keys, "streams") as client:
        for _ in range(2):
            with client.stream("POST", "/v1/completions", json=STREAM) as stream:
                assert stream.headers["x-ratelimit-remaining-tokens"].isdecimal()
                lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
                for _, _ in zip(range(3), lines, strict=False):
                    pass
        used = usage(root, "streams")
        assert 2 * 3 < used["day_tokens"] == counted(root, "streams") < 2 * 800
        assert used["day_requests"] == 2
        # All that is left can be had, and no more.
        prompt = chat(client, max_tokens=1).json()["usage"]["prompt_tokens"]
        limit = usage(root, "streams")["day_tokens"] + 40
        assert root.post("/v1/admin/keys/streams", json={"tokens_per_day": limit}).status_code == 200
        assert chat(client, max_tokens=41 - prompt).status_code == 429
        assert chat(client, max_tokens=40 - prompt).status_code == 200
    assert usage(root, "streams")["day_tokens"] == limit


def test_what_policies_read_and_what_is_remembered_is_charged(
    server: Running, keys: dict[str, str], root: httpx.Client
) -> None:
    remember = {"name": "simplemem", "extraction": "turns", "novelty": "surprisal", "plan": "words", "window": 2,
                "stride": 2, "idle": 0.0, "consolidate": False}  # fmt: skip
    body = {"model": "small", "messages": [{"role": "user", "content": "My red boat has 3 sails."}], "max_tokens": 3,
            "ignore_eos": True}  # fmt: skip
    with caller(server, keys, "thinks") as client:
        told = client.post("/v1/chat/completions", json={**body, "policy": [remember]}).json()["usage"]["total_tokens"]
        until(lambda: counted(root, "thinks", "background") > 0, "the surprisal of the window")
        after = counted(root, "thinks", "background")
        until(lambda: usage(root, "thinks")["day_tokens"] == told + after, "the charge for what was remembered")
        asking = {**remember, "remember": False, "plan": "engine"}
        answer = client.post("/v1/chat/completions", json={**body, "policy": [asking]}).json()
        assert answer["waver"]["memory"]["recalled"]
        quoted, planned = answer["waver"]["memory"]["prompt_tokens"], answer["waver"]["discarded_tokens"]
        spent = usage(root, "thinks")["day_tokens"] - told - after
    assert spent >= answer["usage"]["total_tokens"] + quoted + planned
    assert spent + told + after == counted(root, "thinks")


def test_a_request_that_is_left_while_it_searches_is_charged(
    server: Running, keys: dict[str, str], root: httpx.Client
) -> None:
    judge = {"name": "entropy_judger", "samples": 4}
    body = json.dumps({**STREAM, "max_tokens": 500, "policy": [judge]}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {keys['leaves']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: server.runtime.engines["large"].active > 0, "its drafts")
    used = usage(root, "leaves")["day_tokens"]
    assert 0 < used == counted(root, "leaves") < 4 * 500


def test_requests_at_a_time(server: Running, keys: dict[str, str], root: httpx.Client) -> None:
    with caller(server, keys, "three") as client, ExitStack() as streams:
        for _ in range(3):
            assert streams.enter_context(client.stream("POST", "/v1/completions", json=STREAM)).status_code == 200
        refused = chat(client)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        streams.close()
        assert usage(root, "three")["running"] == 0
        assert chat(client).status_code == 200


def test_answers_are_cut_where_the_key_or_the_request_allows_it(
    server: Running, keys: dict[str, str], root: httpx.Client
) -> None:
    with caller(server, keys, "cut") as client:
        answer = chat(client, max_tokens=500).json()
        assert (answer["usage"]["total_tokens"], answer["choices"][0]["finish_reason"]) == (60, "length")
        assert answer["waver"]["token_budget"] == answer["usage"]["completion_tokens"]
        assert chat(client, max_tokens=1).status_code == 429
    with caller(server, keys, "bare") as client:
        never = chat(client, max_tokens=500)
        assert (never.status_code, never.json()["error"]["param"]) == (400, "max_tokens")
        body = {"model": "small", "policy": [], "messages": [{"role": "user", "content": "a"}], "ignore_eos": True}
        assert client.post("/v1/chat/completions", json=body).json()["usage"]["total_tokens"] == 60
    for name in ("cut", "bare"):
        assert usage(root, name)["day_tokens"] == 60


def test_what_fails_does_not_count_and_every_route_does(
    server: Running, keys: dict[str, str], root: httpx.Client
) -> None:
    with caller(server, keys, "few") as client:
        for _ in range(8):
            assert chat(client, max_tokens=-1).status_code == 400
            assert client.get("/v1/nothing").status_code == 404
        assert usage(root, "few")["day_requests"] == 0
        assert client.get("/v1/models").headers["x-ratelimit-remaining-requests"] == "3"
        assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200
        assert client.get("/v1/collections").status_code == 200
        messages = {"model": "small", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "policy": []}
        assert client.post("/v1/messages", json=messages).status_code == 200
        refused = client.post("/v1/messages", json=messages)
        assert refused.status_code == 429
        assert refused.json()["type"] == "error", "in Anthropic's format"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert client.get("/health").status_code == 200


def test_the_part_of_a_budget_that_is_used_is_a_metric(
    server: Running, keys: dict[str, str], root: httpx.Client
) -> None:
    def shown() -> float | None:
        server.run(server.runtime.meter.look())
        labels = {"key": "asks", "budget": "tokens_per_day"}
        return server.runtime.metrics.registry.get_sample_value("waver_key_budget_used_ratio", labels)

    assert shown() == 0
    with caller(server, keys, "asks") as client:
        total = chat(client).json()["usage"]["total_tokens"]
    usage(root, "asks")
    assert shown() == pytest.approx(total / 200)
    server.runtime.database._clock = lambda: NOON + 86_400
    assert shown() == 0
    server.runtime.database._clock = lambda: NOON


def test_embeddings_are_charged(server: Running, keys: dict[str, str], root: httpx.Client) -> None:
    with caller(server, keys, "embeds") as client:
        answer = client.post("/v1/embeddings", json={"input": "one two three"})
        assert usage(root, "embeds")["day_tokens"] == answer.json()["usage"]["total_tokens"] == 3
        assert client.post("/v1/embeddings", json={"input": "word " * 8}).status_code == 429
        assert client.post("/v1/embeddings", json={"input": "word " * 7}).status_code == 200


def test_the_sdk_sees_a_rate_limit(server: Running, keys: dict[str, str]) -> None:
    with server.openai(api_key=keys["requests"]) as client, pytest.raises(openai.RateLimitError) as refused:
        client.models.list()
    assert refused.value.code == "rate_limit_exceeded"
