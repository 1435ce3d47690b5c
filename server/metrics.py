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
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from waver.engines.base import Engine, Measured
from waver.policies.base import Policy
from waver.policies.report import Report
from waver.policies.retrieve.drift import Drift
from waver.server.admission import Admission
from waver.server.config import Config
from waver.server.tenants.meter import Meter
from waver.server.usage_log import UsageLog

KEYED = ["key", "preset"]
PAUSE = 0.05
"""Seconds between two measurements of the event loop's lag."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5, 30)
NATS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 10)


class ServerState(Protocol):
    """The server's state that gauges read."""

    config: Config
    engines: dict[str, Engine]
    admission: Admission
    usage: UsageLog | None
    meter: Meter

    @property
    def ready(self) -> bool: ...


class Metrics:
    """All metrics of a server: counters and histograms, and gauges that are read at each scrape."""

    def __init__(self, server: ServerState, most_keys: int = 100) -> None:
        """Make them; `most_keys` have labels of their own."""
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
        self.key_requests = Counter(
            "waver_key_requests", "Requests answered, by the name of the key.", ["key", "status"], registry=here
        )
        self.key_tokens = Counter("waver_key_tokens", "Tokens, by the name of the key.", ["key", "kind"], registry=here)
        self._keys: set[str] = set()
        self._most_keys = most_keys
        self.prompt_tokens = Counter("waver_prompt_tokens", "Prompt tokens of answered requests.", registry=here)
        self.discarded = Counter("waver_discarded_tokens", "Tokens thrown away by policies.", registry=here)
        self.switches = Counter("waver_switches", "Hand-overs between engines.", registry=here)
        self.gates = Counter(
            "waver_gate_firings",
            "Segments of answers that ended because their gate fired, by engine.",
            ["engine"],
            registry=here,
        )
        self.between_tokens = Histogram(
            "waver_inter_token_seconds",
            "Time between two tokens of an answer, by the engine of the second.",
            ["engine"],
            buckets=TOKEN_SECONDS,
            registry=here,
        )
        self.queued = Histogram(
            "waver_queue_seconds", "Time that requests waited for their turn.", buckets=SECONDS, registry=here
        )
        self.entropy = Histogram(
            "waver_token_entropy_nats",
            "Entropy of the distribution that each token was drawn from, by engine.",
            ["engine"],
            buckets=NATS,
            registry=here,
        )
        self.cost = Counter(
            "waver_cost",
            "Work of engines in billions of parameters times tokens, read and decoded ones.",
            KEYED,
            registry=here,
        )
        self.cost_alone = Counter(
            "waver_cost_alone",
            "Work that the largest engine alone would have had with the same answers.",
            KEYED,
            registry=here,
        )
        self.cost_saved = Gauge(
            "waver_cost_saved",
            "The second less the first: what policies have saved since the start.",
            KEYED,
            registry=here,
        )
        self.searches = Histogram(
            "waver_search_seconds",
            "Time to find passages, the question's vector included.",
            buckets=SECONDS,
            registry=here,
        )
        self.passages = Counter("waver_passages", "Passages found.", registry=here)
        self.documents = Counter("waver_documents", "Documents taken in, by outcome.", ["outcome"], registry=here)
        self.reloads = Counter(
            "waver_config_reloads", "Times the configuration was read again, by outcome.", ["outcome"], registry=here
        )
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

    def observe_request(self, key: str | None, preset: str | None, spent: float, alone: float, queued: float) -> None:
        """Record the cost of a request, in billions of parameters times tokens, and the seconds that it waited."""
        labels = self.key_label(key or ""), preset or ""
        self.cost.labels(*labels).inc(spent)
        self.cost_alone.labels(*labels).inc(alone)
        self.cost_saved.labels(*labels).inc(alone - spent)
        self.queued.observe(queued)

    def observe_token(self, engine: str, entropy: float, since: float | None) -> None:
        """Record a token of an answer: its entropy in nats, and the seconds since the one before, if there is one."""
        self.entropy.labels(engine).observe(entropy)
        if since is not None:
            self.between_tokens.labels(engine).observe(since)

    def key_label(self, key: str) -> str:
        """Return the label of a key: its name, or `other` where the first keys have taken all labels that there are."""
        if key not in self._keys and len(self._keys) < self._most_keys:
            self._keys.add(key)
        return key if key in self._keys else "other"

    def count_tokens(self, key: str, **kinds: int) -> None:
        """Count tokens of a key, by kind."""
        for kind, count in kinds.items():
            self.key_tokens.labels(self.key_label(key), kind).inc(count)

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
        limits = self._server.config.server
        yield GaugeMetricFamily("waver_requests_waiting_limit", "Most requests that may wait.", limits.max_queue)
        yield GaugeMetricFamily(
            "waver_requests_running_limit", "Most requests decoded at a time.", limits.max_concurrency
        )
        lost = 0 if self._server.usage is None else self._server.usage.lost
        yield CounterMetricFamily("waver_usage_records_lost", "Usage records that could not be written.", lost)
        budgets = GaugeMetricFamily(
            "waver_key_budget_used_ratio", "Part of a key's budget that is used.", labels=["key", "budget"]
        )
        shares = self._server.meter.shares
        shown = set(list(dict.fromkeys(each.key for each in shares))[: self._server.config.keys.metric_names])
        for each in shares:
            if each.key in shown:
                budgets.add_metric([each.key, each.budget], each.used)
        yield budgets
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
