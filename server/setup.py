"""List what is configured, for clients that let people choose: engines, presets, and what policies may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from waver.engines import LoraConfig
from waver.policies.hints import available_names
from waver.resources import MODELS
from waver.server.auth import SCOPE_KEY
from waver.server.bodies import BodyRoute
from waver.server.models import shown, shows
from waver.server.routing import PREFIX
from waver.server.runtime import Runtime, ready_runtime
from waver.server.schemas import PolicyCheckRequest

router = APIRouter(route_class=BodyRoute)


@router.get("/v1/setup", summary="Engines, presets, and the names that policies may use")
async def setup(request: Request) -> dict[str, Any]:
    here = ready_runtime(request)
    presets = {name: here.route(PREFIX + name).policies for name in here.config.presets if shows(here, PREFIX + name)}
    return {
        "object": "setup",
        "engines": [engine_card(here, name) for name in here.engines if shows(here, name)],
        "reference": here.largest_engine,
        "presets": {name: [each.model_dump(mode="json") for each in chosen] for name, chosen in presets.items()},
        "default_preset": here.config.default_preset,
        "names": available_names(here.services),
    }


@router.post("/v1/policies/check", summary="Check a list of policies without running it")
async def check(request: Request, body: PolicyCheckRequest) -> dict[str, Any]:
    """Answer with the policies in the order in which they run and all of their parameters, and the engines that may
    write; what a request with them would be refused for at once is refused here, too."""
    here = ready_runtime(request)
    route = here.route(body.model, body.policy, request.scope.get(SCOPE_KEY))
    return {
        "object": "policies",
        "policy": [policy.model_dump(mode="json") for policy in route.policies],
        "engines": list(route.engines),
        "max_model_len": here.context(route),
    }


def engine_card(here: Runtime, name: str) -> dict[str, Any]:
    """Describe an engine: its model, parameter count, context, and whether the model is one of the bundled pair."""
    config, engine = here.config.engines[name], here.engines[name]
    model = None if isinstance(config, LoraConfig) else config.model
    return {
        "id": name,
        "model": None if model is None else shown(model),
        "parameters": engine.parameters,
        "max_model_len": engine.context_length,
        "bundled": model is not None and Path(model).resolve().parent == MODELS.resolve(),
    }
