"""Spans tell how a request went, in the caller's trace, and hold no text; without the extra nothing is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Running, until
from waver import tracing
from waver.server.traces import Traces, make_traces, wanted

SECRET = "a-secret-word-of-mine"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHAT = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 24, "ignore_eos": True}


@pytest.fixture
def spans(running: Running) -> Iterator[Any]:
    """Spans that the shared server has sent, kept in memory."""
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    traces = make_traces(exporter)
    assert isinstance(traces, Traces)
    running.runtime.traces = traces

    def finished(requests: int = 0) -> list[Any]:
        """Return the spans that have ended, once so many are of requests: one ends a moment after its answer."""

        def there() -> bool:
            traces._provider.force_flush()
            return sum(each.kind.name == "SERVER" for each in exporter.get_finished_spans()) >= requests

        until(there, "the spans of requests", 30)
        return list(exporter.get_finished_spans())

    yield finished
    running.runtime.traces = None
    traces.close()


def test_a_request_and_its_segments(running: Running, spans: Any) -> None:
    policy = [{"name": "ead", "threshold": 2.5, "window": 1, "min_tokens": 1, "threshold_down": None}]
    with running.http(headers={"traceparent": PARENT}) as http:
        answer = http.post("/v1/chat/completions", json={**CHAT, "policy": policy})
    told = answer.json()["waver"]
    found = spans(1)
    (request,) = [each for each in found if each.kind.name == "SERVER"]
    segments = [each for each in found if each.name == "segment"]
    assert len(segments) > told["switches"] > 0
    assert {f"{each.context.trace_id:032x}" for each in found} == {PARENT.split("-")[1]}
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert {each.parent.span_id for each in segments} == {request.context.span_id}
    assert {each.attributes["waver.engine"] for each in segments} == {"small", "large"}
    assert sum(each.attributes["waver.tokens"] for each in segments) >= 24
    assert request.attributes["http.route"] == "/v1/chat/completions"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["waver.request_id"] == answer.headers["x-request-id"]
    assert SECRET not in "".join(each.to_json() for each in found)


def test_lookups_and_guards(running: Running, spans: Any) -> None:
    with running.http() as http:
        http.post("/v1/collections", json={"name": "traced"})
        document = {"documents": [{"id": "a", "text": f"{SECRET} is somewhere."}]}
        assert http.post("/v1/collections/traced/documents", json=document).status_code == 200
        policy = [{"name": "safeharbor"}, {"name": "l_rag", "collection": "traced", "gate": "always"}]
        answer = http.post("/v1/chat/completions", json={**CHAT, "policy": policy})
        http.delete("/v1/collections/traced")
    assert answer.status_code == 200, answer.text
    found = spans()
    (guard,) = [each for each in found if each.name == "guard"]
    (retrieval,) = [each for each in found if each.name == "retrieval"]
    assert (guard.attributes["waver.guard"], guard.attributes["waver.outcome"]) == (
        "starter",
        answer.json()["waver"]["guard"]["outcome"],
    )
    assert dict(retrieval.attributes) == {"waver.collection": "traced", "waver.mode": "hybrid", "waver.passages": 1}
    assert SECRET not in "".join(each.to_json() for each in found)


def test_a_failure_is_marked_without_its_message(spans: Any) -> None:
    with pytest.raises(ValueError, match=SECRET), tracing.span("broken", {"number": 1}):
        raise ValueError(SECRET)
    (span,) = spans()
    assert (span.status.status_code.name, span.attributes["error.type"]) == ("ERROR", "ValueError")
    assert SECRET not in span.to_json()


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_decide(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: bool
) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wanted() == asked


def test_a_missing_extra_is_said_and_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    from structlog.testing import capture_logs

    with capture_logs() as entries:
        assert make_traces() is None
    assert "otel" in entries[0]["event"]


def test_nothing_is_imported_where_nobody_asks() -> None:
    code = (
        "import os, sys\nos.environ.pop('OTEL_EXPORTER_OTLP_ENDPOINT', None)\n"
        "from waver.server.traces import make_traces\nassert make_traces() is None\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
