"""Build the application: its routes, and its middleware from the outermost to the innermost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from waver import __version__
from waver.engines.base import Engine
from waver.server import (
    admin,
    chat,
    collections,
    completions,
    dashboard,
    documents,
    embeddings,
    engine_reload,
    facts,
    health,
    memories,
    messages,
    metrics,
    models,
    page,
    rerank,
    responses,
    setup,
    tokenization,
    uncertainty,
)
from waver.server.addresses import AddressMiddleware, PrefixMiddleware
from waver.server.auth import OPEN_FILES, AuthMiddleware
from waver.server.config import Config
from waver.server.errors import ErrorBody, ErrorsMiddleware, install_handlers
from waver.server.limits import LimitsMiddleware
from waver.server.logs import LogMiddleware
from waver.server.metering import MeterMiddleware
from waver.server.origin import OriginMiddleware
from waver.server.runtime import Runtime
from waver.server.turns import TurnsMiddleware

PARTS = (
    chat,
    completions,
    uncertainty,
    embeddings,
    rerank,
    collections,
    documents,
    facts,
    memories,
    models,
    setup,
    tokenization,
    responses,
    messages,
    health,
    metrics,
    dashboard,
    admin,
    engine_reload,
    page,
)
"""Modules with the routes of the API."""
RATE_HEADERS = [
    f"x-ratelimit-{said}-{what}" for said in ("limit", "remaining", "reset") for what in ("requests", "tokens")
]
THIS_MACHINE = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def create_app(
    config: Config,
    engines: Mapping[str, Engine] | None = None,
    on_failure: Callable[[], None] = lambda: None,
    on_loaded: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Build the application for a configuration.

    Args:
        engines: engines that are loaded already; the others are loaded in the background once the application runs.
        on_failure: called when they cannot be. on_loaded: called when they are, before the first request.
    """
    runtime = Runtime(config, engines)
    bounds = config.server

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = {
            asyncio.create_task(runtime.start(on_failure, on_loaded)),
            asyncio.create_task(runtime.metrics.watch_loop()),
            asyncio.create_task(runtime.hour.watch()),
            asyncio.create_task(runtime.keys.watch()),
            asyncio.create_task(runtime.meter.watch()),
        }
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await runtime.stop()

    app = FastAPIOffline(
        title="Waver",
        version=__version__,
        summary="An OpenAI-compatible server that spends compute where a language model wavers.",
        lifespan=lifespan,
        redoc_url=None,
        static_url=f"{OPEN_FILES}docs",
        responses={
            "4XX": {"model": ErrorBody, "description": "The request cannot be answered."},
            "5XX": {"model": ErrorBody, "description": "The server cannot answer now, or failed."},
        },
        redirect_slashes=False,
        middleware=[
            Middleware(AddressMiddleware, prefix=bounds.root_path, names=names_below_v1()),
            Middleware(LogMiddleware, runtime=runtime),
            Middleware(TurnsMiddleware),
            Middleware(
                CORSMiddleware,
                allow_origins=bounds.cors_origins,
                allow_origin_regex=THIS_MACHINE,
                allow_methods=["GET", "HEAD", "POST", "DELETE", "OPTIONS"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-waver-policy", "x-waver-ignored", "retry-after", *RATE_HEADERS],
            ),
            Middleware(OptionsMiddleware),
            Middleware(
                AuthMiddleware,
                ring=runtime.keys,
                unasked=partial(
                    OriginMiddleware,
                    bound=bounds.host,
                    allowed_hosts=bounds.allowed_hosts,
                    allowed_origins=bounds.cors_origins,
                    origin_pattern=THIS_MACHINE,
                ),
            ),
            Middleware(ErrorsMiddleware, stopping=lambda: runtime.stopping),
            Middleware(MeterMiddleware, meter=runtime.meter),
            Middleware(
                LimitsMiddleware,
                max_body=bounds.max_body_bytes,
                max_documents=config.retrieval.max_body_bytes,
                max_headers=bounds.max_header_bytes,
                body_timeout=bounds.body_timeout,
                max_total=bounds.max_total_body_bytes,
                max_conversation=lambda: bounds.max_picture_body_bytes if runtime.sees else 0,
            ),
            Middleware(PrefixMiddleware, prefix=bounds.root_path),
        ],
    )
    app.state.runtime = runtime
    install_handlers(app)
    for part in PARTS:
        app.include_router(part.router)
    app.mount("/static", page.files)
    return app


def names_below_v1() -> frozenset[str]:
    """Return the first segments of the paths below `/v1` that mean nothing at the root."""
    paths = [route.path.split("/") for part in PARTS for route in part.router.routes if isinstance(route, APIRoute)]
    return frozenset(path[2] for path in paths if path[1] == "v1") - {path[1] for path in paths}


def allowed_methods(scope: Scope) -> list[str]:
    """Return the methods that a path of the application takes."""
    found = {"OPTIONS"}
    routes = [each for each in scope["app"].routes if isinstance(each, APIRoute) and each.include_in_schema]
    fitting = [each for each in routes if each.matches(scope)[0] != Match.NONE]
    exact = [each for each in fitting if "{" not in each.path]  # `/v1/memories/search` is no memory
    for route in exact or fitting:
        found |= route.methods
    if found == {"OPTIONS"}:
        found = {"GET", "POST", "DELETE", "OPTIONS"}
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


class OptionsMiddleware:
    """Middleware that answers OPTIONS before keys are checked, as browsers send no key with a preflight request: with
    the methods of the path, or with all where nothing is at a path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            allowed = Response(status_code=204, headers={"allow": ", ".join(allowed_methods(scope))})
            return await allowed(scope, receive, send)
        return await self.app(scope, receive, send)
