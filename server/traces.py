"""Send spans to an OpenTelemetry collector, where the standard variables name one (`OTEL_EXPORTER_OTLP_ENDPOINT`, …).

The packages are the extra `otel`; they are imported where such a variable is set, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from waver import __version__, tracing
from waver.extras import how_to_install
from waver.tracing import Span, Value

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = structlog.get_logger("waver")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_MILLISECONDS = 3000


def wanted() -> bool:
    """Return whether the environment asks for traces."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    none = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
    return not off and not none and any(os.environ.get(name) for name in ENDPOINTS)


class Traces:
    """The spans of a server: one for each request, and inside of it those of `waver.tracing.span`."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer("waver", __version__)
        self._extract, self._trace = propagate.extract, trace

    def start(self, name: str, attributes: Mapping[str, Value]) -> Span:
        return _Span(self._tracer.start_span(name, attributes=dict(attributes)))

    @contextmanager
    def request(self, headers: Mapping[str, str], name: str, attributes: Mapping[str, Value]) -> Iterator[Span]:
        """Time a request; tasks that are started inside belong to it. It continues the caller's trace
        (`traceparent`)."""
        kind = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(name, self._extract(headers), kind, attributes=dict(attributes))
        with self._trace.use_span(span, end_on_exit=True, record_exception=False):
            yield _Span(span)

    def close(self) -> None:
        """Send what was not sent yet, for a few seconds."""
        tracing.listen(None)
        self._provider.force_flush(FLUSH_MILLISECONDS)
        self._provider.shutdown()


class _Span:
    def __init__(self, span: Any) -> None:
        self._span = span

    def note(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)

    def end(self, error: BaseException | None) -> None:
        from opentelemetry.trace import StatusCode

        if error is not None:  # its message may quote a client
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def make_traces(exporter: SpanExporter | None = None) -> Traces | None:
    """Begin to record spans if the environment asks for them.

    Args:
        exporter: what takes the spans, in place of the one that the environment describes.
    """
    if exporter is None and not wanted():
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` go over the name.
        name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "waver"}
        provider = TracerProvider(resource=Resource.create({**name, "service.version": __version__}))
        provider.add_span_processor(BatchSpanProcessor(_exporter() if exporter is None else exporter))
    except ImportError as error:
        log.warning(f"no traces are sent: {error.name} is not installed: {how_to_install('otel')}")
        return None
    traces = Traces(provider)
    tracing.listen(traces)
    return traces


def _exporter() -> SpanExporter:
    """Make the exporter of the protocol that the environment names: HTTP, or gRPC where its package is installed."""
    named = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if named == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
