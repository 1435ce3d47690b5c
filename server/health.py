"""Liveness, readiness, version, and the list of policies."""

from __future__ import annotations

from fastapi import APIRouter, Request

from waver import __version__
from waver.policies.registry import describe
from waver.server.errors import not_ready
from waver.server.runtime import ready_runtime, runtime

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="The process is up")
async def health(request: Request) -> dict[str, str]:
    """Tell that the process is up, always with status 200, and how its engines are: `starting`, `ready`, or `failed`
    where one cannot serve."""
    found = runtime(request)
    engines = "failed" if found.failure or (found.loaded and found.dead) else "ready" if found.loaded else "starting"
    return {"status": "ok", "engines": engines}


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="The engines are warm")
async def ready(request: Request) -> dict[str, str]:
    if dead := ready_runtime(request).dead:
        raise not_ready(f"These engines cannot serve now: {', '.join(dead)}.")
    return {"status": "ready"}


@router.get("/version", summary="The server's version")
async def server_version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/v1/policies", summary="Every policy with the JSON Schema of its parameters")
async def policies(request: Request) -> dict[str, object]:
    return {"object": "list", "data": describe(runtime(request).config.policies)}
