"""Restart of an engine that dies: the delay, and the first answer before it is ready again."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import until
from tests.engines.vllm.reference import KNOWN
from tests.engines.vllm_here import needs_vllm
from waver.engines.config import VllmConfig
from waver.engines.vllm import core
from waver.engines.vllm.core import Core, Running

pytestmark = needs_vllm
SHORT = 0.05
"""Seconds of the shortest pause."""


class Fragile(Core):
    """A core whose engines are none, and live as long as the test lets them."""

    def __init__(self, warm: Callable[[Running], Coroutine[Any, Any, None]]) -> None:
        self.starts: list[float] = []
        self.stopped: list[Any] = []
        self.broken = False
        self.silence, self.answers = 0.0, True
        super().__init__("fragile", VllmConfig(model="no model", heartbeat_timeout=2, step_timeout=40 * SHORT), warm)

    def _start(self) -> Running:
        self.starts.append(time.monotonic())
        if self.broken:
            raise ValueError("no room on the device")
        awake: Any = SimpleNamespace(propagate_error=lambda error: None)
        resources = SimpleNamespace(engine_dead=False)
        llm: Any = SimpleNamespace(errored=False, output_processor=awake, output_handler=None)
        llm.engine_core = SimpleNamespace(resources=resources)
        llm.shutdown = lambda: self.stopped.append(llm)

        async def is_sleeping() -> bool:
            if not self.answers:
                await asyncio.Event().wait()
            return False

        llm.is_sleeping = is_sleeping
        ring: Any = None
        lifeline: Any = SimpleNamespace(silence=lambda: self.silence)
        return Running(llm, ring, lifeline)

    def kill(self) -> None:
        assert self._running is not None
        self._running.llm.errored = True

    def pauses(self) -> list[float]:
        """Seconds between two starts."""
        return [later - sooner for sooner, later in zip(self.starts, self.starts[1:], strict=False)]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop

    async def end() -> None:
        """Let every task end: a core that closes may have asked its engine a moment ago."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., Fragile]]:
    monkeypatch.setattr(core, "WATCH", SHORT / 10)
    monkeypatch.setattr(core, "QUICKEST", SHORT)
    monkeypatch.setattr(core, "SLOWEST", 16 * SHORT)
    monkeypatch.setattr(core, "HEALTH_CHECK", SHORT / 5)
    made = list[Fragile]()

    async def answers(running: Running) -> None: ...

    def one(warm: Callable[[Running], Coroutine[Any, Any, None]] = answers) -> Fragile:
        made.append(Fragile(warm))

        async def attach() -> None:
            made[-1].attach()

        asyncio.run_coroutine_threadsafe(attach(), loop).result()
        return made[-1]

    yield one
    for each in made:
        each.close()


def test_an_engine_that_cannot_start_is_tried_less_and_less(make: Callable[..., Fragile]) -> None:
    fragile = make()
    fragile.broken = True
    fragile.kill()
    until(lambda: len(fragile.starts) == 8, "eight starts")
    assert fragile.running is None
    assert fragile.restarts == 0
    pauses = fragile.pauses()[1:]  # the first is the life of the first engine
    for pause, factor in zip(pauses, (2, 4, 8, 16, 16, 16), strict=True):
        assert pause >= factor * SHORT
    assert pauses[0] < pauses[3]
    fragile.broken = False
    until(lambda: fragile.running is not None, "the engine")
    assert fragile.restarts == 1


def test_an_engine_that_dies_soon_again_is_tried_less_and_less(make: Callable[..., Fragile]) -> None:
    fragile = make()
    for restarts in range(1, 6):
        fragile.kill()
        until(lambda: fragile.restarts == restarts and fragile.running is not None, "the engine")  # noqa: B023
    assert [pause >= 2**i * SHORT for i, pause in enumerate(fragile.pauses())] == [True] * 5
    time.sleep(17 * SHORT)
    fragile.kill()
    died = time.monotonic()
    until(lambda: fragile.running is not None, "the engine")
    assert fragile.starts[-1] - died < 16 * SHORT  # it lived long, so its death is the first again


def test_who_asks_meets_an_engine_that_has_answered(
    make: Callable[..., Fragile], loop: asyncio.AbstractEventLoop
) -> None:
    answering, seen = asyncio.Event(), list[Running]()

    async def slowly(running: Running) -> None:
        seen.append(running)
        await answering.wait()

    fragile = make(slowly)
    assert not seen
    fragile.kill()
    until(lambda: len(seen) == 1, "the first request")
    time.sleep(SHORT)
    assert fragile.running is None
    loop.call_soon_threadsafe(answering.set)
    until(lambda: fragile.running is not None, "the engine")
    assert fragile.running is seen[0]


@pytest.mark.parametrize("death", ["says so", "is silent"])
def test_an_engine_that_dies_of_its_first_request_is_tried_again(make: Callable[..., Fragile], death: str) -> None:
    seen = list[Running]()

    async def fatal(running: Running) -> None:
        seen.append(running)
        if len(seen) > 2:
            return
        if death == "says so":
            raise RuntimeError("out of memory")
        running.llm.errored = True
        await asyncio.sleep(3600)

    fragile = make(fatal)
    fragile.kill()
    until(lambda: fragile.running is not None, "the engine")
    assert fragile.restarts == 1
    assert fragile.running is seen[2]
    assert fragile.stopped[1:] == [seen[0].llm, seen[1].llm]


@pytest.mark.parametrize("sign", ["a process is silent", "the loop does not come round"])
def test_an_engine_that_hangs_is_ended_and_started_again(make: Callable[..., Fragile], sign: str) -> None:
    fragile = make()
    first = fragile.running
    assert first is not None
    if sign == "a process is silent":
        fragile.silence = 1.9
    time.sleep(20 * SHORT)  # many questions were answered; and a silence that the configuration allows
    assert fragile.running is first
    if sign == "a process is silent":
        fragile.silence = 2.1
    else:
        fragile.answers = False
    until(lambda: fragile.stopped == [first.llm], "the end of the engine")
    assert first.llm.engine_core.resources.engine_dead
    fragile.silence, fragile.answers = 0.0, True
    until(lambda: fragile.running is not None, "the engine")
    assert fragile.restarts >= 1


def test_closing_waits_for_no_answer(make: Callable[..., Fragile]) -> None:
    seen = list[Running]()

    async def never(running: Running) -> None:
        seen.append(running)
        await asyncio.sleep(3600)

    fragile = make(never)
    fragile.kill()
    until(lambda: len(seen) == 1, "the first request")
    fragile.close()
    assert seen[0].llm in fragile.stopped
    assert fragile.running is None


@pytest.mark.parametrize(
    ("on_a_cpu", "args", "together"),
    [(True, {}, 2), (False, {"kv_cache_memory_bytes": 2**20}, 2), (False, {}, 1)],
)
def test_engines_that_take_what_memory_they_find_start_in_turn(
    on_a_cpu: bool, args: dict[str, Any], together: int, configure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    config, inside, most = copy.deepcopy(configure(KNOWN)), threading.Semaphore(0), list[int]()

    def begin(*_: Any, **__: Any) -> Any:
        inside.release()
        time.sleep(10 * SHORT)
        most.append(inside._value)
        inside.acquire()
        return SimpleNamespace(errored=False, output_handler=None, shutdown=lambda: None)

    monkeypatch.setattr(AsyncEngineArgs, "create_engine_config", lambda *_: config)
    monkeypatch.setattr(AsyncLLM, "from_vllm_config", begin)
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: on_a_cpu))
    with ThreadPoolExecutor(2) as threads:
        cores = list(threads.map(lambda name: Core(name, VllmConfig(model="no model", args=args)), ("small", "large")))
    for each in cores:
        each.close()
    assert max(most) == together


@pytest.mark.parametrize(
    ("field", "value", "why"), [("enable_batch_sharded_sampling", True, "batch-sharded"), ("nnodes", 2, "machine")]
)
def test_what_the_workers_would_refuse_is_said_at_the_start(
    field: str, value: Any, why: str, configure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    config = configure(KNOWN)
    monkeypatch.setattr(config.parallel_config, field, value)
    monkeypatch.setattr(AsyncEngineArgs, "create_engine_config", lambda *_: config)
    with pytest.raises(ValueError, match=f"engine 'large': vLLM cannot start 'no model': .*{why}"):
        Core("large", VllmConfig(model="no model"))
