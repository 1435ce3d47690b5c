"""The last hour, from the counters of /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from waver.server.hour import Hour


def grown(found: Mapping[str, Any], name: str, **labels: str) -> list[float]:
    """Return by how much a series grew between readings."""
    (one,) = [each["grown"] for each in found["series"] if each["name"] == name and each["labels"] == labels]
    return list(one)


def test_readings_become_differences() -> None:
    registry = CollectorRegistry()
    tokens = Counter("waver_tokens", "", ["engine"], registry=registry)
    still = Counter("waver_still", "", registry=registry)
    other = Counter("python_things", "", registry=registry)
    seconds = Histogram("waver_seconds", "", buckets=(1, 5), registry=registry)
    Gauge("waver_gauge", "", registry=registry).set(5)
    still.inc()
    hour = Hour(registry)
    hour.read(0.0)
    tokens.labels("small").inc(3)
    other.inc()
    hour.read(30.0)
    tokens.labels("small").inc(4)
    tokens.labels("large").inc()
    seconds.observe(2)
    found = hour.as_dict(40.0)
    assert found["ago"] == [40, 10, 0]
    assert grown(found, "waver_tokens_total", engine="small") == [3, 4]
    assert grown(found, "waver_tokens_total", engine="large") == [0, 1]
    assert grown(found, "waver_seconds_bucket", le="5.0") == [0, 1]
    assert {each["name"] for each in found["series"]} == {
        "waver_tokens_total", "waver_seconds_bucket", "waver_seconds_count", "waver_seconds_sum",
    }  # fmt: skip


def test_an_answer_moves_the_dashboard(http: httpx.Client) -> None:
    def tokens() -> float:
        series = http.get("/v1/dashboard").json()["series"]
        return sum(sum(each["grown"]) for each in series if each["name"] == "waver_generated_tokens_total")

    before = tokens()
    body = {"model": "small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    spent = http.post("/v1/chat/completions", json=body | {"ignore_eos": True}).json()["usage"]["completion_tokens"]
    assert tokens() >= before + spent == before + 5
