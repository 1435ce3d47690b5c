"""GET /v1/models: every engine, and every preset as `waver/<preset>`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from waver.server.errors import APIError
from waver.server.runtime import Runtime, runtime

router = APIRouter()


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", summary="List the models")
async def models(request: Request) -> dict[str, Any]:
    here = runtime(request)
    return {"object": "list", "data": [describe(name, here) for name in here.models()]}


@router.head("/v1/models/{model:path}", include_in_schema=False)
@router.get("/v1/models/{model:path}", summary="One model")
async def model(model: str, request: Request) -> dict[str, Any]:
    here = runtime(request)
    if model not in here.models():
        shown = ", ".join(here.models())
        message = f"There is no model '{model[:80]}'; there are: {shown}."
        raise APIError(404, message, param="model", code="model_not_found")
    return describe(model, here)


def describe(name: str, here: Runtime) -> dict[str, Any]:
    out: dict[str, Any] = {"id": name, "object": "model", "created": here.created, "owned_by": "waver"}
    if here.loaded:
        route = here.route(name)
        out["max_model_len"] = min(here.engines[engine].context_length for engine in {route.engine, *route.engines})
    return out
