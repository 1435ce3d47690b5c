"""The Python client against a real server."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

from waver.clients import AsyncWaver, Waver, ead, has_report, report, trace
from waver.clients.client import BASE_URL, NO_KEY

QUESTION: dict[str, Any] = {
    "model": "small",
    "messages": [{"role": "user", "content": "What is 34 + 25?"}],
    "max_tokens": 24,
    "temperature": 0,
    "seed": 1,
}
TRACED = {"policy": [ead(small="small", large="large", threshold=0.05, window=1, min_tokens=1)], "trace": True}


def test_defaults_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAVER_API_KEY", "WAVER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with Waver() as client:
        assert (str(client.base_url).rstrip("/"), client.api_key) == (BASE_URL, NO_KEY)
    monkeypatch.setenv("WAVER_API_KEY", "sk-1")
    monkeypatch.setenv("WAVER_BASE_URL", "http://elsewhere:9/v1")
    with Waver() as client, client.with_options(timeout=3) as copy:
        assert (str(copy.base_url), copy.api_key, copy.timeout) == ("http://elsewhere:9/v1/", "sk-1", 3)


def test_policies(base_url: str) -> None:
    with Waver(base_url=base_url) as client:
        found = {policy.name: policy for policy in client.policies()}
    assert found["ead"].stage == "decode"
    assert "threshold" in found["ead"].parameters["properties"]
    assert found["ead"].summary


def test_report_and_trace_of_a_response(base_url: str) -> None:
    with Waver(base_url=base_url) as client:
        response = client.chat.completions.create(**QUESTION, extra_body=TRACED)
    summary = report(response)
    assert response.usage is not None
    assert sum(summary.tokens.values()) == response.usage.completion_tokens == len(summary.trace)
    assert summary.policy[0]["threshold"] == 0.05
    assert 0 < summary.relative_cost <= 1
    assert summary.entropy.kind == "exact"
    assert summary.entropy.max == pytest.approx(max(token.entropy for token in summary.trace), abs=1e-6)
    assert summary.entropy.mean == pytest.approx(
        sum(token.entropy for token in summary.trace) / len(summary.trace), abs=1e-6
    )
    writers = [token.engine for token in summary.trace]
    assert summary.switches == sum(a != b for a, b in pairwise(writers))


def test_report_and_trace_of_a_stream(base_url: str) -> None:
    with Waver(base_url=base_url) as client:
        whole = report(client.chat.completions.create(**QUESTION, extra_body=TRACED))
        chunks = list(client.chat.completions.create(**QUESTION, stream=True, extra_body=TRACED))
    with pytest.raises(LookupError, match="finishing chunks"):
        report(chunks[0])
    (summary,) = [report(chunk) for chunk in chunks if has_report(chunk)]
    assert [token for chunk in chunks for choice in chunk.choices for token in trace(choice)] == whole.trace
    apart: Any = {"trace": True, "cost": {"seconds_alone": True, "engines": {"__all__": {"seconds"}}}}
    assert summary.model_dump(exclude=apart) == whole.model_dump(exclude=apart)
    assert summary.trace == []


def test_each_choice_has_its_own_report(base_url: str) -> None:
    with Waver(base_url=base_url) as client:
        response = client.chat.completions.create(**QUESTION | {"temperature": 1.0}, n=3, extra_body=TRACED)
    reports = [report(choice) for choice in response.choices]
    assert response.usage is not None
    assert sum(sum(r.tokens.values()) for r in reports) == response.usage.completion_tokens
    assert all(r.trace for r in reports)


async def test_async(base_url: str) -> None:
    async with AsyncWaver(base_url=base_url) as client:
        assert {policy.name for policy in await client.policies()} >= {"ead", "random_switch", "route"}
        response = await client.chat.completions.create(**QUESTION, extra_body=TRACED)
    assert report(response).tokens


def test_a_mistyped_parameter_is_refused_by_name(base_url: str) -> None:
    with Waver(base_url=base_url) as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**QUESTION, extra_body={"policy": [{"name": "ead", "treshold": 1}]})
    assert caught.value.param == "policy[0].treshold"


def test_the_client_adds_nothing_to_the_wire(base_url: str) -> None:
    seen: list[httpx.Request] = []
    http = httpx.Client(event_hooks={"request": [seen.append]})
    with Waver(base_url=base_url, http_client=http) as client:
        client.models.list()
    assert [str(request.url) for request in seen] == [f"{base_url}/models"]
