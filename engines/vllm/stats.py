"""vLLM's own Prometheus metrics, for each engine in a registry of its own: in the process's, where vLLM puts them, an
engine that starts drops those of the one before."""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


def logger_into(registry: CollectorRegistry) -> type[Any]:
    """A logger of vLLM's that keeps its metrics in a registry."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    gauge, counter, histogram = (partial(kind, registry=registry) for kind in (Gauge, Counter, Histogram))

    class Speculation(PrometheusStatLogger._spec_decoding_cls):  # type: ignore[misc]
        _counter_cls = counter

    class Performance(PrometheusStatLogger._perf_metrics_cls):  # type: ignore[misc]
        _counter_cls = counter

    class Logger(PrometheusStatLogger):  # type: ignore[misc]
        _gauge_cls, _counter_cls, _histogram_cls = gauge, counter, histogram
        _spec_decoding_cls, _perf_metrics_cls = Speculation, Performance

    return Logger
