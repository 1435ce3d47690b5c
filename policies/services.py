"""The server's services for policies, in one object. A new service is a new field here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from waver.engines.base import Engine
from waver.engines.judge import Judge
from waver.engines.metering import Meter, unmetered
from waver.engines.probe import Probe
from waver.engines.router import Router
from waver.policies.stores import Stores

if TYPE_CHECKING:
    from waver.policies.ask.task import AskTask
    from waver.policies.ask.thresholds import Thresholds
    from waver.policies.guard.memory import Guard
    from waver.policies.select.verifiers import Verifier
    from waver.policies.uncertainty.calibration import Calibration
    from waver.policies.uncertainty.entailment import Entailment
    from waver.retrieval.embedder import Embedder
    from waver.retrieval.library import Library
    from waver.retrieval.memory.episodes import Episodes
    from waver.retrieval.memory.facts import Facts
    from waver.retrieval.memory.memories import Memories


@dataclass(frozen=True)
class Services:
    """The engines, probes, judges, calibrations and guards of the configuration, by name, its collections of documents,
    its stores for what outlives a request, the memories and episodes of conversations, and facts (None: there are
    none)."""

    engines: Mapping[str, Engine]
    library: Library | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)
    stores: Stores | None = None
    memories: Memories | None = None
    facts: Facts | None = None
    judges: Mapping[str, Judge] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    tasks: Mapping[str, AskTask] = field(default_factory=dict)
    """Tasks of policies of the stage `ask`, by name."""
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)
    guards: Mapping[str, Guard] = field(default_factory=dict)
    episodes: Episodes | None = None
    routers: Mapping[str, Router] = field(default_factory=dict)
    verifiers: Mapping[str, Verifier] = field(default_factory=dict)
    """Verifiers, which tell the goals that an answer meets, by name."""
    entailment: Entailment | None = None
    """The model that tells whether one text follows from another; None: there is none."""
    presets: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Policies of the configuration's presets, by name."""
    extra_tokens: int = 2**18
    """Most tokens that the policies of one request may draw beside its answers."""

    charge: Callable[[str, str, Meter], None] | None = None
    """Charges an owner for what a policy, by its name, had engines compute outside of requests."""

    @contextmanager
    def charged(self, owner: str, policy: str) -> Iterator[Services]:
        """Yield these services for work outside of a request; what engines compute in this block is charged to an owner
        when it ends, however it ends."""
        meter = Meter()
        engines = {name: unmetered(engine) for name, engine in self.engines.items()}
        try:
            yield replace(self, engines=meter.engines(engines))
        finally:
            if self.charge is not None and meter.first:
                self.charge(owner, policy, meter)

    @property
    def embedder(self) -> Embedder | None:
        """The configuration's first embedder; None where there are no collections."""
        return None if self.library is None else self.library.embedder()
