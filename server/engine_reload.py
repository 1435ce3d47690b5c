"""Load an engine's model again while the server runs, from the same place: as after `waver edit` or a training.

The new model is loaded beside the old one and checked. Then, from one step of the event loop to the next, new answers
get the new one; answers that have begun end with the old one, which is then closed. What cannot be loaded changes
nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog
from fastapi import APIRouter, Depends, Request

from waver.engines import LoraConfig, TransformersConfig
from waver.engines.base import Engine, EngineError, reason
from waver.engines.tokens import differences
from waver.server.admin import note, without_fields
from waver.server.bodies import BodyRoute
from waver.server.errors import APIError
from waver.server.routing import Router
from waver.server.runtime import Runtime, check_parsers, load_engines, ready_runtime, warm_up

log = structlog.get_logger("waver")
router = APIRouter(route_class=BodyRoute)

LOOK = 0.2
"""Seconds between two looks at whether an old engine is still needed."""
GRACE = 60.0
"""Seconds beyond the server's `timeout` after which an old engine is closed, needed or not."""


@router.post(
    "/v1/admin/engines/{name}/reload", summary="Load an engine's model again", dependencies=[Depends(without_fields)]
)
async def reload(request: Request, name: str) -> dict[str, Any]:
    """Load the weights that are in the engine's folder now. Answers once new requests get them.

    Raises:
        APIError: 404, there is no such engine; 409, it cannot be loaded again, and the old one goes on.
    """
    here = ready_runtime(request)
    began = time.perf_counter()
    await reload_engine(here, name)
    await note(request, "engine.reload", name, {})
    return {"object": "engine.reload", "name": name, "seconds": round(time.perf_counter() - began, 3)}


async def reload_engine(here: Runtime, name: str) -> None:
    """Load an engine's model again, and serve new answers with it.

    Raises:
        APIError: 404 or 409, with the reason; then nothing has changed.
    """
    config = here.config.engines.get(name)
    if config is None:
        raise APIError(404, f"There is no engine '{name[:64]}'.", param="name", code="engine_not_found")
    if not isinstance(config, TransformersConfig):
        why = "is loaded once" if config.backend == "vllm" else "is another server's"
        raise _refused(f"the model of a '{config.backend}' engine {why}: start the server, or that one, anew")
    if any(isinstance(each, LoraConfig) and each.base == name for each in here.config.engines.values()):
        raise _refused("adapters of other engines stand on it")
    if here.reloading.locked() or name in here.retiring:
        raise _refused("a reload is under way")
    async with here.reloading:
        old = here.engines[name]
        try:
            new = (await load_engines({name: config}, {}))[name]
        except ValueError as error:
            raise _refused(str(error)) from error
        try:
            await _take_over(here, name, old, new)
        except BaseException:
            await new.aclose()
            raise
    here.retiring[name] = asyncio.create_task(_retire(here, name, old), name=f"retiring-{name}")
    log.info("an engine is reloaded", engine=name, model=config.model)


async def _take_over(here: Runtime, name: str, old: Engine, new: Engine) -> None:
    """Check that the new engine can stand in the old one's place, and put it there.

    Raises:
        APIError: 409, it cannot.
    """
    if other := await asyncio.to_thread(differences, old.tokens, new.tokens):
        raise _refused(f"the model in its folder has another tokenizer ({other}): start the server anew")
    try:
        await warm_up(new, guided=True)
    except EngineError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _refused(f"the new one fails at a first request: {reason(cause)}") from error
    engines = {each: new if each == name else engine for each, engine in here.engines.items()}
    try:
        route = await asyncio.to_thread(Router, here.config, engines, here.probes)
        await asyncio.to_thread(check_parsers, here.config.engines, engines)
    except ValueError as error:
        raise _refused(str(error)) from error
    here.exchange(name, new, route)


async def _retire(here: Runtime, name: str, old: Engine) -> None:
    """Close an engine once the answers that had begun with it have ended, and what is done after them."""
    until = asyncio.get_running_loop().time() + here.config.server.timeout + GRACE
    begun = set(here.answers)
    try:
        await _while(lambda: bool(old.active or begun & here.answers), until)
        hooks = here.after_hooks.running
        await _while(lambda: bool(old.active or hooks & here.after_hooks.running), until)
    finally:
        await old.aclose()
        here.retiring.pop(name, None)


async def _while(needed: Callable[[], bool], until: float) -> None:
    while needed() and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
        await asyncio.sleep(LOOK)


def _refused(why: str) -> APIError:
    return APIError(409, f"The engine is not reloaded, and goes on as it was: {why}.", code="engine_not_reloaded")
