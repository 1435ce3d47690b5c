"""GET /v1/models: every engine, every preset as `waver/<preset>`, and the embedders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from waver.engines import LoraConfig
from waver.engines.vision import vision_of
from waver.server.errors import APIError
from waver.server.routing import PREFIX
from waver.server.runtime import Runtime, runtime

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
    """List the models that write, and behind them those that embed, as many clients take the first one."""
    return list(dict.fromkeys((*here.models(), *here.library.embedders)))


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
