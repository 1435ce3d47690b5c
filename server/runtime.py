"""The state that every endpoint shares: the configuration, engines, services and limits of the running server."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from fastapi import Request

from waver import __version__
from waver.engines import (
    EngineConfig,
    LoraConfig,
    ModelConfig,
    TransformersConfig,
    UpstreamConfig,
    load_adapter,
    load_engine,
    plugins,
)
from waver.engines.base import Engine, Sampling, Unsupported, forwards_pictures
from waver.engines.judge import Judge
from waver.engines.metering import Meter as EngineMeter
from waver.engines.probe import Probe
from waver.engines.router import Router as KindRouter
from waver.engines.vision import vision_of
from waver.policies.ask.task import AskTask
from waver.policies.ask.thresholds import Thresholds
from waver.policies.guard.memory import Guard
from waver.policies.job import key_of
from waver.policies.registry import policies
from waver.policies.select import verifiers
from waver.policies.select.verifiers import Verifier
from waver.policies.services import Services
from waver.policies.stores import Stores
from waver.policies.uncertainty.calibration import Calibration
from waver.policies.uncertainty.entailment import Entailment
from waver.retrieval.base import RetrievalError
from waver.retrieval.library import SEARCHES, Library
from waver.retrieval.memory.episodes import Episodes
from waver.retrieval.memory.facts import Facts
from waver.retrieval.memory.memories import Memories
from waver.server.admission import Admission
from waver.server.after_hooks import AfterHooks
from waver.server.artifacts import LOADERS, load_section, named
from waver.server.background import Background
from waver.server.bodies import Bodies
from waver.server.config import Config, find_model
from waver.server.errors import not_ready, server_stopping
from waver.server.hour import Hour
from waver.server.jobs import Jobs
from waver.server.keys import configured_keys
from waver.server.message.parsers import parser_problems
from waver.server.metrics import Metrics
from waver.server.permissions import check_route
from waver.server.pictures import Pictures
from waver.server.preflight import no_folder
from waver.server.response_store import ResponseStore
from waver.server.routing import Route, Router, declared_writers, model_names
from waver.server.schema_checks import SchemaChecks
from waver.server.step_times import StepTimes
from waver.server.tenants.database import Database
from waver.server.tenants.grant import current
from waver.server.tenants.key_ring import KeyRing
from waver.server.tenants.meter import Meter
from waver.server.tenants.owners import Owners
from waver.server.texts import TokenizerPool
from waver.server.traces import make_traces
from waver.server.usage_log import UsageLog
from waver.server.usage_records import background_record

log = structlog.get_logger("waver")

INGESTS = 9
"""Requests that bring documents, all that wait for a thread or for their turn to write included: each holds its body in
memory."""
AFTER_HOOKS_GRACE = 5.0
"""Seconds that what policies do after answers is given when the server stops."""


class Runtime:
    """State of the running server. Engines are loaded in the background; until then requests are refused.

    Raises:
        ValueError: the database of keys cannot be used.
    """

    loaded = False
    failure: str | None = None
    stopping = False
    """True once the grace period of running requests is over."""
    reloads = 0
    """Number of times that a model was loaded again."""

    def __init__(self, config: Config, engines: Mapping[str, Engine] | None = None) -> None:
        self.config = config
        self.database = Database(config.keys.database, Path(config.state))
        self.keys = KeyRing.loaded(
            configured_keys(config.server), self.database, config.keys.plain, config.keys.refresh
        )
        self.owners = Owners(self.database)
        self.meter = Meter(self.database, lambda: self.keys.grants)
        self.engines: dict[str, Engine] = dict(engines or {})
        self.admission = Admission(config.server.max_concurrency, config.server.max_queue)
        self.library = Library(config.retrieval)
        self.probes: dict[str, Probe] = {}
        self.judges: dict[str, Judge] = {}
        self.routers: dict[str, KindRouter] = {}
        self.calibrations: dict[str, Calibration] = {}
        self.tasks: dict[str, AskTask] = {}
        self.thresholds: dict[str, Thresholds] = {}
        self.guards: dict[str, Guard] = {}
        self.verifiers: dict[str, Verifier] = {}
        self.entailment: Entailment | None = None
        self.stores = Stores(Path(config.state))
        self.memories = Memories(Path(config.state), config.memory, self.library.embedder)
        self.episodes = Episodes(Path(config.state), config.memory, self.library.embedder)
        limits = config.memory
        self.facts = Facts(Path(config.state), limits.max_facts, limits.lock_seconds, self.library.embedder)
        self.after_hooks = AfterHooks()
        self.background = Background()
        self.bodies = Bodies(config.server.max_body_values)
        self.pictures = Pictures(config.server)
        self.texts = TokenizerPool(config.server.text_threads, config.server.max_concurrency + config.server.max_queue)
        self.shaping = TokenizerPool(config.server.text_threads, None)
        """Pool in which long answers are put together: an answer that was decoded is not refused any more."""
        self.responses = ResponseStore(config.server.max_stored_responses, config.server.max_stored_bytes)
        self.schema_checks = SchemaChecks(config.server.schema_seconds, config.server.schema_memory)
        self.searches = Admission(SEARCHES, config.server.max_queue)
        self.ingests = Admission(INGESTS, 0)
        self.jobs = Jobs()
        self.answers: set[Callable[[Exception], None]] = set()
        """For each answer in the making, what ends it with an error."""
        self.usage = None if config.server.usage_file is None else UsageLog(Path(config.server.usage_file).expanduser())
        self.traces = make_traces()
        self.metrics = Metrics(self, config.keys.metric_names)
        self.hour = Hour(self.metrics.registry)
        self.step_times = StepTimes()
        self.created = int(time.time())
        self.fingerprint = fingerprint(config)
        """The name of this version and configuration: `system_fingerprint`."""
        self.reloading = asyncio.Lock()
        self.retiring: dict[str, asyncio.Task[None]] = {}
        """For each engine that was loaded again, the task that closes the old one."""
        self._router: Router | None = None

    async def start(
        self, on_failure: Callable[[], None] = lambda: None, on_loaded: Callable[[], None] = lambda: None
    ) -> None:
        """Load the missing engines, check that the configuration can be served, and report ready."""
        missing = {name: engine for name, engine in self.config.engines.items() if name not in self.engines}
        began = time.perf_counter()
        try:
            await asyncio.to_thread(plugins.load, self.config.modules)
            for section in LOADERS:
                setattr(self, section, await asyncio.to_thread(load_section, self.config, section))
            self.verifiers = {
                name: await asyncio.to_thread(named, "verifier", name, partial(verifiers.load, name, each))
                for name, each in self.config.verifiers.items()
            }
            if self.config.entailment is not None:
                load = partial(Entailment.load, find_model(self.config.entailment))
                self.entailment = await asyncio.to_thread(named, "entailment", self.config.entailment, load)
            # Presets and defaults are checked before the models are loaded, which can take minutes.
            Router(self.config, declared_writers(self.config), self.probes)
            await self._check_embedders()
            loaded = await load_engines(missing, self.engines)
            guided = [n for n in loaded if not isinstance(self.config.engines[n], UpstreamConfig)]
            await asyncio.gather(*(warm_up(each, name in guided) for name, each in loaded.items()))
            everything = self.engines | loaded
            self.engines = {name: everything[name] for name in self.config.engines}
            await asyncio.to_thread(check_parsers, self.config.engines, self.engines)
            self.metrics.declare(policies().values())
            self._router = self.make_router(self.config)
        except Exception as error:
            self.failure = str(error)
            log.error(
                "the server cannot start",
                reason=self.failure,
                exc_info=None if isinstance(error, ValueError) else error,
            )
            on_failure()
            return
        on_loaded()
        self.loaded = True
        self.background.start(policies().values(), self.services)
        log.info("ready", engines=list(self.engines), seconds=round(time.perf_counter() - began, 2))
        await asyncio.to_thread(self.schema_checks.warm, list(self.engines.values()))

    async def _check_embedders(self) -> None:
        """Load the embedders.

        Raises:
            Unavailable: the configuration names an embedder that cannot be loaded.
        """
        try:
            await asyncio.to_thread(self.library.check_embedders)
        except RetrievalError as error:
            if self.library.names_embedder:
                raise
            log.warning("the collections cannot be searched", reason=str(error))

    def cut(self) -> None:
        """End every running answer with an error: the grace period at shutdown is over."""
        self.stopping = True
        for end in tuple(self.answers):
            end(server_stopping())
        self.jobs.cancel()

    async def stop(self) -> None:
        self.loaded = False
        await self.after_hooks.settle(AFTER_HOOKS_GRACE)
        await self.background.stop()
        for task in (retiring := list(self.retiring.values())):
            task.cancel()
        closing = (engine.aclose() for engine in self.engines.values())
        await asyncio.gather(*retiring, *closing, return_exceptions=True)
        await asyncio.to_thread(self.stores.close)
        await asyncio.to_thread(self.memories.close)
        await asyncio.to_thread(self.episodes.close)
        await asyncio.to_thread(self.facts.close)
        await self.jobs.aclose()
        await asyncio.to_thread(self.library.close)
        await self.meter.aclose()
        if self.usage is not None:
            await asyncio.to_thread(self.usage.close)
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)
        for each in (self.schema_checks, self.texts, self.shaping, self.bodies, self.pictures, self.database):
            await asyncio.to_thread(each.close)

    @property
    def services(self) -> Services:
        """Return the services that policies may use, for the key of the request that this task works for."""
        most = current().grant.max_extra_tokens
        return Services(
            self.engines,
            self.library,
            self.probes,
            self.stores,
            self.memories,
            self.facts,
            self.judges,
            self.calibrations,
            self.tasks,
            self.thresholds,
            self.guards,
            self.episodes,
            self.routers,
            self.verifiers,
            self.entailment,
            {} if self._router is None else self._router.presets,
            min(self.config.server.max_extra_tokens, self.config.server.max_extra_tokens if most is None else most),
            self.charge,
        )

    def charge(self, owner: str, policy: str, meter: EngineMeter) -> None:
        """Charge a key for what a policy had engines compute outside of requests. A request that comes later is refused
        where nothing is left; this work was begun by an earlier one, and is done."""
        key = key_of(owner)
        if self.usage is not None:
            self.usage.write(background_record(key, policy, meter))
        if key is None:
            return
        self.metrics.count_tokens(key, background=meter.first)
        grant = self.keys.grant(key)
        if grant is not None and grant.limits_tokens:
            self.meter.charge(key, meter.first)

    def deadline(self, timeout: float | None) -> float:
        """Return the time by which a request must be answered, on the event loop's clock: by its own `timeout`, at most
        the server's."""
        most = self.config.server.timeout
        return asyncio.get_running_loop().time() + min(timeout or most, most)

    @property
    def dead(self) -> list[str]:
        """Return the names of engines that cannot serve now."""
        return [name for name, engine in self.engines.items() if not engine.alive]

    @property
    def sees(self) -> bool:
        """Return whether a model takes pictures."""
        return any(vision_of(engine) is not None or forwards_pictures(engine) for engine in self.engines.values())

    @property
    def ready(self) -> bool:
        """Return whether every engine is warm and alive."""
        return self.loaded and not self.dead

    def parameters(self, route: Route) -> dict[str, int]:
        """Return the parameter counts of the engines that may write, by name."""
        return {name: self.engines[name].parameters for name in route.engines}

    @property
    def largest_engine(self) -> str:
        """Return the name of the engine with the most parameters, with which costs are compared."""
        return max(self.engines, key=lambda name: self.engines[name].parameters)

    def context(self, route: Route) -> int:
        """Return the context length in tokens, for prompt and answer: the shortest of the engines that may write."""
        return min(self.engines[name].context_length for name in {route.engine, *route.engines})

    def models(self) -> list[str]:
        """Return the valid values of a request's `model`."""
        return model_names(self.config)

    def route(self, model: str | None, policy: Any = None, key: str | None = None) -> Route:
        """Resolve a request's `model` and `policy`, under the key of this name.

        Raises:
            APIError: 404, no such model or preset for this key; 403, it may not use a policy; 503, the engines are not
                loaded.
            PolicyError: the policies cannot be run.
        """
        if self._router is None:
            raise not_ready("The engines are still starting.")
        found = self._router.route(model, policy, key)
        check_route(found, self.config)
        return found

    def make_router(self, config: Config) -> Router:
        """Resolve the presets of another configuration with the engines that are loaded; blocks.

        Raises:
            ConfigError: a preset or a policy's defaults cannot be used.
        """
        return Router(config, self.engines, self.probes)

    def take_over(self, config: Config, router: Router) -> None:
        """Serve new requests by another configuration of the same engines, from one step of the event loop to the
        next."""
        self.config, self._router, self.fingerprint = config, router, fingerprint(config, self.reloads)
        running, waiting = config.server.max_concurrency, config.server.max_queue
        self.admission.resize(running, waiting)
        self.searches.resize(SEARCHES, waiting)
        self.texts.resize(running + waiting)

    def exchange(self, name: str, engine: Engine, router: Router) -> None:
        """Serve new requests with another engine of a name, from one step of the event loop to the next."""
        self.engines[name] = engine  # in place: background work has this dictionary
        self.reloads += 1
        self._router, self.fingerprint = router, fingerprint(self.config, self.reloads)

    def check_pins(self, route: Route, key: str | None) -> None:
        """Check that a route has what the configuration that it was resolved under pins for a key.

        Raises:
            RuntimeError: it was resolved without the key.
        """
        missing = {each["name"] for each in route.router.pinned(key)} - {policy.name for policy in route.policies}
        if missing:
            raise RuntimeError(f"a request was about to run without the pinned {', '.join(sorted(missing))}")


def check_parsers(configs: Mapping[str, EngineConfig], engines: Mapping[str, Engine]) -> None:
    """Load the parsers of tool calls and of reasoning that the configuration names; blocks.

    Raises:
        ValueError: there is no such parser.
    """
    for name, config in configs.items():
        try:
            for _, error in parser_problems(config, engines[name].tokens):
                raise error
        except ValueError as error:
            raise ValueError(f"engine '{name}': {error}") from error


def fingerprint(config: Config, reloads: int = 0) -> str:
    """Return a short name for this version with these engines, presets and defaults, and with the models that were
    loaded again so many times: other answers than under another one are no surprise."""
    said = config.model_dump_json(include={"engines", "presets", "default_preset", "policies"}) + f"{reloads or ''}"
    return f"waver-{__version__}-{hashlib.blake2b(said.encode(), digest_size=4).hexdigest()}"


async def load_engines(configs: Mapping[str, EngineConfig], there: Mapping[str, Engine]) -> dict[str, Engine]:
    """Load engines concurrently, except that those of transformers come one after the other: loading a model sets the
    default device of the whole process. Adapters follow once all models are loaded.

    Args:
        there: engines that are loaded already.

    Raises:
        ValueError: one of them cannot be loaded; the others are closed again.
    """
    turn = asyncio.Lock()

    async def one(name: str, config: ModelConfig) -> Engine:
        async with turn if isinstance(config, TransformersConfig) else nullcontext():
            began = time.perf_counter()
            log.info("loading an engine", engine=name, **origin(config))
            try:
                engine = await asyncio.to_thread(load_engine, name, config)
            except (OSError, ValueError) as error:
                if is_here(config):
                    raise
                said = f"Engine '{name}': {no_folder(config.model)}, and it cannot be loaded from a hub: {error}"
                raise ValueError(said) from error
            log.info("an engine is loaded", engine=name, seconds=round(time.perf_counter() - began, 2))
            return engine

    models = {name: config for name, config in configs.items() if not isinstance(config, LoraConfig)}
    made = await asyncio.gather(*(one(*item) for item in models.items()), return_exceptions=True)
    loaded = {name: each for name, each in zip(models, made, strict=True) if not isinstance(each, BaseException)}
    try:
        if failures := [each for each in made if isinstance(each, BaseException)]:
            raise failures[0]
        for name, config in configs.items():
            if isinstance(config, LoraConfig):
                loaded[name] = await load_adapter(name, config, {**there, **loaded}[config.base])
    except BaseException:
        await asyncio.gather(*(each.aclose() for each in loaded.values()))
        raise
    return loaded


def origin(config: ModelConfig) -> dict[str, str]:
    """Return what a log line says of where a model comes from."""
    said = {"backend": config.backend, "model": config.model}
    return said if is_here(config) else {**said, "source": "a hub, as there is no such folder here"}


def is_here(config: ModelConfig) -> bool:
    """Return whether a model is another server's or a folder of this machine, and so no hub's."""
    return isinstance(config, UpstreamConfig) or Path(config.model).expanduser().exists()


async def warm_up(engine: Engine, guided: bool) -> None:
    """Run a first request, so that an engine compiles what it needs. `guided`: also one with a JSON schema."""
    ids = engine.tokens.encode("Hello")[:16]
    async for _ in engine.generate(ids, Sampling(max_tokens=2, top_logprobs=1)):
        pass
    if guided:
        with suppress(Unsupported):  # a tokenizer that cannot be guided, or an engine that speculates
            async for _ in engine.generate(ids, Sampling(max_tokens=2, grammar='{"type": "object"}')):
                pass


def runtime(request: Request) -> Runtime:
    """Return the running server: a FastAPI dependency."""
    found: Runtime = request.app.state.runtime
    return found


def ready_runtime(request: Request) -> Runtime:
    """Return the running server once its engines are warm: a FastAPI dependency.

    Raises:
        APIError: 503 until they are warm.
    """
    found = runtime(request)
    if not found.loaded:
        raise not_ready(
            f"The engines did not start: {found.failure}" if found.failure else "The engines are still starting."
        )
    return found
