"""Start an `AsyncLLM` with its ring buffer, watch it, and start it again when it dies or hangs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import CollectorRegistry

from waver.engines.base import reason
from waver.engines.config import VllmConfig
from waver.engines.vllm.claim import run_folder
from waver.engines.vllm.lifeline import Lifeline, set_lifeline
from waver.engines.vllm.ring import EntropyRing, set_ring_path
from waver.engines.vllm.stats import logger_into
from waver.extras import how_to_install_vllm

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = structlog.get_logger("waver")

GIB = 2**30
WATCH = 0.2
"""Seconds between two checks whether the engine core lives."""
HEALTH_CHECK = 5.0
"""Seconds between two health checks of the engine core's loop, which answers them between two steps."""
QUICKEST, SLOWEST = 1.0, 60.0
"""Shortest and longest pause before another attempt to start (seconds). It doubles with each, until an engine has lived
for longer than the longest."""
STARTING = threading.Lock()
"""Held by an engine that starts and takes the memory that it finds free: of two at once on one device, each would count
the other's as its own."""


@dataclass(frozen=True, slots=True)
class Running:
    """One running engine. A request keeps it to its end, also if the engine is replaced meanwhile."""

    llm: AsyncLLM
    ring: EntropyRing
    lifeline: Lifeline
    stats: CollectorRegistry | None = None
    """vLLM's own metrics, where the configuration asks for them."""


class Core:
    """Keeps one engine running. The constructor starts it (blocking: run it in a thread).

    One thread starts every engine and lives as long as they do: the kernel ends vLLM's processes with the thread that
    started them (`waver.engines.vllm.lifeline`).

    Args:
        warm_up: sends a first request to an engine that was started again, before others may; None: none is sent. It
            may also be set later.

    Raises:
        ValueError: vLLM is not installed, or cannot start the model; the message says why.
    """

    def __init__(
        self,
        name: str,
        config: VllmConfig,
        warm_up: Callable[[Running], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._name, self._config, self.warm_up = name, config, warm_up
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = threading.Event()
        self._running: Running | None = None
        self._asked: tuple[Future[bool], float] | None = None
        self.restarts = 0
        started: Future[None] = Future()
        self._watcher = threading.Thread(target=self._watch, args=(started,), name=f"watch-{name}", daemon=True)
        self._watcher.start()
        started.result()

    @property
    def running(self) -> Running | None:
        """The engine; None while it is dead or being started again."""
        running = self._running
        return None if running is None or running.llm.errored else running

    def attach(self) -> None:
        """Note the event loop that requests run in, so that they can be told of a death."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._asked = loop, None

    def close(self) -> None:
        """Stop for good (blocking)."""
        self._closed.set()
        self._watcher.join()
        if self._running is not None:
            self._stop(self._running)
            self._running = None

    def _start(self) -> Running:
        """Start an engine.

        Raises:
            ValueError: vLLM is not installed, or cannot start the model.
        """
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # as `vllm serve` does: this process has threads
        os.environ.setdefault("VLLM_RPC_BASE_PATH", str(run_folder()))  # of the sockets between its processes
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM

            from waver.engines.vllm.admission import ELSEWHERE, SHARDED
        except ImportError as error:
            raise ValueError(
                f"engine {self._name!r}: vLLM is not installed: {how_to_install_vllm()} [{error}]"
            ) from error
        ring: EntropyRing | None = None
        lifeline: Lifeline | None = None
        try:
            defaults: dict[str, Any] = {
                "enable_prefix_caching": True,
                "disable_log_stats": True,
                "scheduling_policy": "priority",  # an answer that has begun goes before new ones
            }
            if current_platform.is_cpu():
                defaults["block_size"] = 32  # vLLM's 128 would be read again at each hand-over
                if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
                    defaults["kv_cache_memory_bytes"] = GIB
            args = AsyncEngineArgs(**{**defaults, **self._config.args, "model": self._config.model})
            config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
            if config.parallel_config.enable_batch_sharded_sampling:
                raise ValueError(SHARDED)
            if config.parallel_config.nnodes > 1:
                raise ValueError(ELSEWHERE)
            ring = EntropyRing.create(config.model_config.get_hidden_size())
            set_ring_path(config, ring.path)
            lifeline = Lifeline(run_folder())
            set_lifeline(config, lifeline)
            stats = None if args.disable_log_stats else CollectorRegistry()
            told = current_platform.is_cpu() or args.kv_cache_memory_bytes is not None
            with nullcontext() if told else STARTING:
                llm = AsyncLLM.from_vllm_config(
                    config,
                    enable_log_requests=args.enable_log_requests,
                    disable_log_stats=args.disable_log_stats,
                    stat_loggers=None if stats is None else [logger_into(stats)],
                )
            return Running(llm, ring, lifeline, stats)
        except Exception as error:  # vLLM, transformers and the drivers each raise their own kinds
            raise ValueError(
                f"engine {self._name!r}: vLLM cannot start {self._config.model!r}: {reason(error)}"
            ) from error
        finally:
            for file in (ring, lifeline):  # the workers have them by now, and a server that is killed leaves nothing
                if file is not None:
                    file.close()

    def _watch(self, first: Future[None]) -> None:
        """Start the engine, report to `first`, and start it again whenever it dies or hangs, until `close`."""
        try:
            self._running = self._start()
        except BaseException as error:
            first.set_exception(error)
            return
        first.set_result(None)
        pause, born = QUICKEST, time.monotonic()
        while not self._closed.wait(WATCH):
            running = self._running
            if running is not None and (running.llm.errored or self._hangs(running)):
                self._end_requests(running)
                if time.monotonic() - born > SLOWEST:
                    pause = QUICKEST
            if self._running is None and not self._closed.wait(pause):
                pause = min(2 * pause, SLOWEST)
                try:
                    self._running = self._start_warm()
                except ValueError as error:
                    log.error("an engine does not start again", engine=self._name, reason=str(error), next=pause)
                    continue
                born = time.monotonic()
                self.restarts += 1
                log.warning("an engine was started again", engine=self._name)

    def _hangs(self, running: Running) -> bool:
        """Return whether one of the engine's processes gives no sign of life, or the engine core's loop does not come
        round, for longer than the configuration allows."""
        silence = running.lifeline.silence()
        if silence > self._config.heartbeat_timeout:
            log.error("an engine hangs: one of its processes does not run", engine=self._name, seconds=round(silence))
            return True
        if self._loop is None or self._loop.is_closed():
            return False  # no request was sent yet
        now = time.monotonic()
        if self._asked is None:
            # Any call that the engine core answers between two steps would do.
            self._asked = asyncio.run_coroutine_threadsafe(running.llm.is_sleeping(), self._loop), now
        answer, when = self._asked
        if answer.done():
            if now - when > HEALTH_CHECK:
                self._asked = None
        elif now - when > self._config.step_timeout:
            log.error("an engine hangs: its loop does not come round", engine=self._name, seconds=round(now - when))
            return True
        return False

    def _start_warm(self) -> Running:
        """Start an engine, and let it answer once if requests were sent to the one before."""
        started = self._start()
        if self.warm_up is None or self._loop is None or self._loop.is_closed():
            return started
        answer = asyncio.run_coroutine_threadsafe(self.warm_up(started), self._loop)
        while not wait([answer], WATCH).done:
            if started.llm.errored or self._closed.is_set() or self._hangs(started):
                answer.cancel()
        try:
            answer.result()
        except Exception as error:  # the request may fail in many ways
            self._stop(started)
            raise ValueError(f"engine {self._name!r}: it started, but did not answer: {error!r}") from error
        return started

    def _end_requests(self, dead: Running) -> None:
        """Fail the requests of an engine that died, and free what is left of it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        log.error("an engine died", engine=self._name)
        self._running, self._asked = None, None
        dead.llm.engine_core.resources.engine_dead = True  # vLLM does not notice a hang, and must send it nothing
        if self._loop is not None and not self._loop.is_closed():
            # vLLM marks the engine dead; the requests that wait for a token have to be woken.
            self._loop.call_soon_threadsafe(dead.llm.output_processor.propagate_error, EngineDeadError())
        self._stop(dead)

    def _stop(self, running: Running) -> None:
        """Shut an engine down, in whatever state it is."""
        handler = running.llm.output_handler
        if handler is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(handler.cancel)  # or it reports the end as a failure
        try:
            running.llm.shutdown()
        except Exception as error:  # a dead engine may be in any state
            log.warning("an engine did not shut down cleanly", engine=self._name, error=repr(error))
        # Its destructor would do this again, and fail at the end of the interpreter.
        running.llm.shutdown = lambda timeout=None: None
