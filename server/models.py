"""GET /v1/models: every engine, every preset as `waver/<preset>`, and the embedders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from waver.engines import LoraConfig
from waver.engines.vision import vision_of
from waver.server.errors import APIError
from waver.server.permissions import check_model
from waver.server.routing import PREFIX
from waver.server.runtime import Runtime, runtime
from waver.server.tenants.grant import current

router = APIRouter()


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", summary="List the models")
async def models(request: Request) -> dict[str, Any]:
    here = runtime(request)
    return {"object": "list", "data": [describe(name, here) for name in names(here)]}


@router.head("/v1/models/{model:path}", include_in_schema=False)
@router.get("/v1/models/{model:path}", summary="One model")
async def model(model: str, request: Request) -> dict[str, Any]:
    here = runtime(request)
    if model not in names(here):
        shown = ", ".join(names(here))
        message = f"There is no model '{model[:80]}'; there are: {shown}."
        raise APIError(404, message, param="model", code="model_not_found")
    return describe(model, here)


def names(here: Runtime) -> list[str]:
    """List the models that the key may use: first those that write, as many clients take the first one, then those that
    embed."""
    return [name for name in dict.fromkeys((*here.models(), *here.library.embedders)) if shows(here, name)]


def shows(here: Runtime, name: str) -> bool:
    """Return whether the key may use a model of this name, a preset's included."""
    grant = current().grant
    if grant.models is None and grant.presets is None:
        return True
    try:
        if name in here.library.embedders:
            check_model(name, here.library.embedders)
        else:
            here.route(name)
    except APIError as error:
        return error.status != 404
    return True


def describe(name: str, here: Runtime) -> dict[str, Any]:
    """Make a model's card. `root` is the model behind the name, without the folders where it lies; `parent` is the
    engine of an adapter's base model, or the engine that a preset's answers are written with at most."""
    card: dict[str, Any] = {"id": name, "object": "model", "created": here.created, "owned_by": "waver"}
    engine = here.config.engines.get(name)
    if engine is None and not name.startswith(PREFIX):
        return {**card, "root": name, "parent": None, "kind": "embedder"}
    card["root"] = name if engine is None else shown(engine.model)
    card["parent"] = engine.base if isinstance(engine, LoraConfig) else None
    if here.loaded:
        route = here.route(name)
        card["parent"] = card["parent"] or (route.engine if engine is None else None)
        if vision_of(here.engines[route.engine]) is not None:
            card["input_modalities"] = ["text", "image"]
        card["max_model_len"] = min(here.engines[each].context_length for each in {route.engine, *route.engines})
    return card


def shown(model: str) -> str:
    """Return a hub id as it is, and of a directory its name."""
    return Path(model).name if Path(model).is_dir() else model
