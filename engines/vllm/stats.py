"""Keep vLLM's own Prometheus metrics of each engine in a registry of its own.

vLLM puts them into the process's registry, where an engine that starts would drop those of the one before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


def logger_into(registry: CollectorRegistry) -> type[Any]:
    """Make a subclass of vLLM's stat logger that keeps its metrics in a registry. The classes that it makes metrics
    with, and the helpers that make more with the same three, are attributes of its class."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    kinds = {"_gauge_cls": Gauge, "_counter_cls": Counter, "_histogram_cls": Histogram}
    into: dict[str, Any] = {name: partial(kind, registry=registry) for name, kind in kinds.items()}
    helpers = {
        name: type(helper.__name__, (helper,), into)
        for name, helper in vars(PrometheusStatLogger).items()
        if name.endswith("_cls") and name not in kinds
    }
    return type("Logger", (PrometheusStatLogger,), into | helpers)
