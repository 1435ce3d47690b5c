"""What every endpoint shares: the configuration, the engines, and which of them a request means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from fastapi import Request

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
from waver.engines.base import Engine, Sampling, Unsupported
from waver.engines.probe import Probe
from waver.policies.base import Policy
from waver.policies.registry import PolicyError, engines_used, parse, policies
from waver.policies.services import Services
from waver.policies.stores import Stores
from waver.retrieval.base import RetrievalError
from waver.retrieval.library import SEARCHES, Library
from waver.server.admission import Admission
from waver.server.aftercare import Aftercare
from waver.server.bodies import Bodies
from waver.server.config import Config
from waver.server.errors import APIError, invalid, not_ready
from waver.server.jobs import Jobs
from waver.server.metrics import Metrics
from waver.server.proofs import Proofs
from waver.server.texts import Texts

log = structlog.get_logger("waver")

PREFIX = "waver/"
INGESTS = 9
"""Requests that bring documents, all that wait for a thread or for their turn to write included: each holds its body in
memory."""
AFTERCARE_GRACE = 5.0
"""Seconds that what policies do after answers is given when the server stops."""


@dataclass(frozen=True)
class Route:
    """How a request is decoded: `model` as it was asked for, and what that came to."""

    model: str
    engine: str
    policies: tuple[Policy, ...]
    label: str
    """For the header `x-waver-policy`: a preset's name, the policies' names, or `none`."""
    engines: tuple[str, ...]
    """Names of the engines that may write."""
    places: Mapping[str, str]
    """Where the request names a policy, as `policy[0]`, by the policy's name; empty if a preset does."""


class Runtime:
    """The running server. Engines are loaded in the background; until then requests are refused."""

    def __init__(self, config: Config, engines: Mapping[str, Engine] | None = None) -> None:
        self.config = config
        self.engines: dict[str, Engine] = dict(engines or {})
        self.admission = Admission(config.server.max_concurrency, config.server.max_queue)
        self.library = Library(config.retrieval)
        self.probes: dict[str, Probe] = {}
        self.stores = Stores(Path(config.state))
        self.aftercare = Aftercare()
        self.bodies = Bodies(config.server.max_body_values)
        self.texts = Texts(config.server.text_threads, config.server.max_queue)
        self.proofs = Proofs(config.server.schema_seconds, config.server.schema_memory)
        self.searches = Admission(SEARCHES, config.server.max_queue)
        self.ingests = Admission(INGESTS, 0)
        self.jobs = Jobs()
        self.metrics = Metrics(self)
        self.created = int(time.time())
        self.loaded = False
        self.failure: str | None = None

    async def start(
        self, on_failure: Callable[[], None] = lambda: None, on_loaded: Callable[[], None] = lambda: None
    ) -> None:
        """Load what is not loaded, check that the configuration can be served, and report ready."""
        missing = {name: engine for name, engine in self.config.engines.items() if name not in self.engines}
        began = time.perf_counter()
        try:
            await asyncio.to_thread(plugins.load, self.config.modules)
            self.probes = await asyncio.to_thread(load_probes, self.config.probes)
            await self._check_embedders()
            loaded = await load_engines(missing, self.engines)
            guided = [n for n in loaded if not isinstance(self.config.engines[n], UpstreamConfig)]
            await asyncio.gather(*(warm_up(each, name in guided) for name, each in loaded.items()))
            everything = self.engines | loaded
            self.engines = {name: everything[name] for name in self.config.engines}
            self._check()
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
        log.info("ready", engines=list(self.engines), seconds=round(time.perf_counter() - began, 2))
        await asyncio.to_thread(self.proofs.warm, list(self.engines.values()))

    async def _check_embedders(self) -> None:
        """Raises:
        Unavailable: the configuration names an embedder that cannot be loaded."""
        try:
            await asyncio.to_thread(self.library.check_embedders)
        except RetrievalError as error:
            if self.library.names_embedder:
                raise
            log.warning("the collections cannot be searched", reason=str(error))

    async def stop(self) -> None:
        self.loaded = False
        await self.aftercare.settle(AFTERCARE_GRACE)
        await asyncio.gather(*(engine.aclose() for engine in self.engines.values()), return_exceptions=True)
        await asyncio.to_thread(self.stores.close)
        await self.jobs.aclose()
        await asyncio.to_thread(self.library.close)
        for each in (self.proofs, self.texts, self.bodies):
            await asyncio.to_thread(each.close)

    @property
    def services(self) -> Services:
        """What policies may use."""
        return Services(self.engines, self.library, self.probes, self.stores)

    def deadline(self, timeout: float | None) -> float:
        """When a request has to be answered, on the event loop's clock: its own `timeout`, or the server's."""
        most = self.config.server.timeout
        return asyncio.get_running_loop().time() + min(timeout or most, most)

    @property
    def dead(self) -> list[str]:
        """Engines that cannot serve now."""
        return [name for name, engine in self.engines.items() if not engine.alive]

    @property
    def ready(self) -> bool:
        """Whether every engine is warm and alive."""
        return self.loaded and not self.dead

    def _check(self) -> None:
        """Raises:
        ValueError: a plug-in, a preset or a policy's defaults cannot be used."""
        policies()
        for name, defaults in self.config.policies.items():
            try:
                parse([{"name": name, **defaults}], self.engines, probes=self.probes)
            except PolicyError as error:
                raise ValueError(f"policies: '{name}': {error}") from error
        for name in self.config.presets:
            try:
                self.route(PREFIX + name)
            except PolicyError as error:
                raise ValueError(f"preset '{name}': {error.param}: {error}") from error

    @property
    def main_engine(self) -> str:
        """The engine behind a preset whose policies pick none themselves: the largest."""
        return max(self.engines, key=lambda name: self.engines[name].parameters)

    def parameters(self, route: Route) -> dict[str, int]:
        """Parameter counts of the engines that may write, by name."""
        return {name: self.engines[name].parameters for name in route.engines}

    def context(self, route: Route) -> int:
        """Most tokens that a prompt and its answer may have together, whichever engine writes."""
        return min(self.engines[name].context_length for name in {route.engine, *route.engines})

    def models(self) -> list[str]:
        return [*self.config.engines, *(PREFIX + name for name in self.config.presets)]

    def route(self, model: str | None, policy: Any = None) -> Route:
        """What a request's `model` and `policy` mean.

        Raises:
            APIError: 404, no such model or preset; 503, the engines are not loaded.
            PolicyError: the policies cannot be run.
        """
        if not self.engines:
            raise not_ready("The engines are still starting.")
        preset = None
        if model is None or model in ("default", "waver"):
            preset = self.config.default_preset
        elif model.startswith(PREFIX):
            preset = model.removeprefix(PREFIX)
        if preset is None:
            engine = next(iter(self.engines)) if model is None or model in ("default", "waver") else model
        else:
            engine = self.main_engine
        asked = model or (PREFIX + preset if preset is not None else engine)
        if engine not in self.engines or (preset is not None and preset not in self.config.presets):
            shown = ", ".join(self.models())
            raise APIError(
                404, f"There is no model '{asked[:80]}'; there are: {shown}.", param="model", code="model_not_found"
            )
        if isinstance(policy, str):
            if policy not in self.config.presets:
                shown = ", ".join(self.config.presets) or "none"
                message = f"There is no preset '{policy[:80]}'; there are: {shown}."
                raise APIError(404, message, param="policy", code="preset_not_found")
            preset = policy
        elif isinstance(policy, list):
            preset = None
        elif policy is not None:
            raise invalid("policy should be the name of a preset or a list of policies.", "policy")
        items = self.config.presets[preset] if preset is not None else policy or []
        policies = parse(items, self.engines, self.config.policies, self.probes)
        label = preset or ",".join(p.name for p in policies) or "none"
        used = engines_used(policies, engine)
        if engine not in used:  # prompts and text are made with the tokenizer of those who write
            engine = max(used, key=lambda name: self.engines[name].parameters)
        places = {item["name"]: f"policy[{i}]" for i, item in enumerate(items)} if preset is None else {}
        return Route(asked, engine, policies, label, used, places)


async def load_engines(configs: Mapping[str, EngineConfig], there: Mapping[str, Engine]) -> dict[str, Engine]:
    """Load side by side what can be: transformers sets the default device of the whole process while it loads a model,
    so its engines come one after the other. Adapters follow once all models are loaded.

    Args:
        there: engines that are loaded already.

    Raises:
        ValueError: one of them cannot be loaded; the others are closed again.
    """
    turn = asyncio.Lock()

    async def one(name: str, config: ModelConfig) -> Engine:
        async with turn if isinstance(config, TransformersConfig) else nullcontext():
            return await asyncio.to_thread(load_engine, name, config)

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


def load_probes(folders: Mapping[str, str]) -> dict[str, Probe]:
    """Raises:
    ValueError: one of them cannot be read."""
    loaded = {}
    for name, folder in folders.items():
        try:
            loaded[name] = Probe.load(Path(folder))
        except ValueError as error:
            raise ValueError(f"probe '{name}': {error}") from error
    return loaded


async def warm_up(engine: Engine, guided: bool) -> None:
    """Let an engine compile what the first request would wait for. `guided`: also the first one with a JSON schema."""
    ids = engine.tokens.encode("Hello")[:16]
    async for _ in engine.generate(ids, Sampling(max_tokens=2, top_logprobs=1)):
        pass
    if guided:
        with suppress(Unsupported):  # a tokenizer that cannot be guided, or an engine that speculates
            async for _ in engine.generate(ids, Sampling(max_tokens=2, grammar='{"type": "object"}')):
                pass


def runtime(request: Request) -> Runtime:
    """FastAPI dependency."""
    found: Runtime = request.app.state.runtime
    return found


def ready_runtime(request: Request) -> Runtime:
    """FastAPI dependency for what needs engines.

    Raises:
        APIError: 503 until they are warm.
    """
    found = runtime(request)
    if not found.loaded:
        raise not_ready(
            f"The engines did not start: {found.failure}" if found.failure else "The engines are still starting."
        )
    return found
