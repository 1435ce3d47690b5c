"""Prometheus metrics, in a registry of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from waver.engines.base import Engine, Measured
from waver.policies.base import Policy
from waver.policies.report import Report
from waver.policies.retrieve.drift import Drift
from waver.server.admission import Admission

PAUSE = 0.05
"""Seconds between two measurements of the event loop's lag."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ServerState(Protocol):
    """The server's state that gauges read."""

    engines: dict[str, Engine]
    admission: Admission

    @property
    def ready(self) -> bool: ...


class Metrics:
    """All metrics of a server: counters and histograms, and gauges that are read at each scrape."""

    def __init__(self, server: ServerState) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter("waver_requests", "Requests answered.", ["route", "status"], registry=here)
        self.seconds = Histogram(
            "waver_request_seconds", "Time to an answer's end.", ["route"], buckets=SECONDS, registry=here
        )
        self.first_token = Histogram(
            "waver_first_token_seconds", "Time to the first token.", buckets=SECONDS, registry=here
        )
        self.tokens = Counter("waver_generated_tokens", "Tokens written, by engine.", ["engine"], registry=here)
        self.prompt_tokens = Counter("waver_prompt_tokens", "Prompt tokens of answered requests.", registry=here)
        self.discarded = Counter("waver_discarded_tokens", "Tokens thrown away by policies.", registry=here)
        self.switches = Counter("waver_switches", "Hand-overs between engines.", registry=here)
        self.searches = Histogram(
            "waver_search_seconds",
            "Time to find passages, the question's vector included.",
            buckets=SECONDS,
            registry=here,
        )
        self.passages = Counter("waver_passages", "Passages found.", registry=here)
        self.documents = Counter("waver_documents", "Documents taken in, by outcome.", ["outcome"], registry=here)
        self.loop_lag = Histogram(
            "waver_event_loop_lag_seconds",
            "How much later than asked for the event loop woke up a task: all streams stand still for as long.",
            buckets=SECONDS,
            registry=here,
        )
        self.drift = Drift()
        self._of_policies: dict[str, Counter] = {}
        here.register(_GaugeCollector(server, self.drift))
        ProcessCollector(registry=here)
        GCCollector(registry=here)

    def declare(self, policies: Iterable[type[Policy]]) -> None:
        """Add the counters that policies declare."""
        for each in (counter for policy in policies for counter in policy.metrics):
            if each.name not in self._of_policies:
                self._of_policies[each.name] = Counter(each.name, each.help, each.labels, registry=self.registry)

    def count(self, policies: Iterable[Policy], report: Report) -> None:
        """Increment the counters that policies declare, from a report."""
        for policy in policies:
            for name, labels in policy.counted(report):
                counter = self._of_policies[name]
                (counter.labels(*labels) if labels else counter).inc()

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + PAUSE
            await asyncio.sleep(PAUSE)
            self.loop_lag.observe(max(clock() - due, 0.0))

    def observe_gate(self, policies: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
        """Record whether a gate fired, for drift detection; `record` is a report's `retrieval`."""
        if not record["seconds"]["gate"]:
            return  # the request ended before its gate had decided
        gate, fired = record["gate"], record["triggered"]
        asked = next(policy for policy in policies if policy.get("collection"))
        self.drift.decided(asked["collection"], gate, record["threshold"], asked["expected_rate"], fired)


class _GaugeCollector(Collector):
    def __init__(self, server: ServerState, drift: Drift) -> None:
        self._server, self._drift = server, drift

    def collect(self) -> Iterator[Metric]:
        active = GaugeMetricFamily(
            "waver_active_sequences", "Sequences decoding or waiting in an engine.", labels=["engine"]
        )
        alive = GaugeMetricFamily("waver_engine_alive", "1 while an engine can be asked.", labels=["engine"])
        theirs: dict[str, Metric] = {}
        for name, engine in self._server.engines.items():
            active.add_metric([name], engine.active)
            alive.add_metric([name], int(engine.alive))
            for own in engine.collect() if isinstance(engine, Measured) else ():
                family = theirs.setdefault(own.name, Metric(own.name, own.documentation, own.type, own.unit))
                family.samples += [each._replace(labels={**each.labels, "waver_engine": name}) for each in own.samples]
        yield from (active, alive, *theirs.values())
        admission = self._server.admission
        yield GaugeMetricFamily("waver_requests_running", "Requests being decoded.", admission.running)
        yield GaugeMetricFamily("waver_requests_waiting", "Requests in the queue.", admission.waiting)
        labels = ["collection", "gate", "threshold"]
        rate = GaugeMetricFamily("waver_retrieval_rate", "Share of the last decisions that retrieved.", labels=labels)
        alarm = GaugeMetricFamily(
            "waver_retrieval_drift", "1 where that is not the rate that calibration expects.", labels=labels
        )
        for key, watched in self._drift.gates.items():
            rate.add_metric(key, watched.rate)
            if watched.expected is not None:
                alarm.add_metric(key, int(watched.alarm))
        yield from (rate, alarm)
        yield GaugeMetricFamily("waver_ready", "1 when the engines are warm.", int(self._server.ready))


router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    registry = request.app.state.runtime.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
