"""Tell a form for policies what their JSON Schema leaves out: what a field names, and what is for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from waver.engines import plugins
from waver.policies.base import Policy
from waver.policies.services import Services

NAMED = {
    "engine": "engines",
    "collection": "collections",
    "probe": "probes",
    "guard": "guards",
    "judge": "judges",
    "router": "routers",
    "calibration": "calibrations",
    "thresholds": "thresholds",
    "task": "tasks",
}
"""Kinds of things that fields of these names name, where they take any text."""


def parameters_schema(policy: type[Policy]) -> dict[str, Any]:
    """Return the JSON Schema of a policy's parameters, made once: those of all policies take a tenth of a second, in
    which a server's streams would stand still. Not to be changed."""
    return _schema(policy, plugins.loaded())


@cache
def _schema(policy: type[Policy], _modules: tuple[str, ...]) -> dict[str, Any]:
    """Make a schema anew where other plug-in modules are loaded, which may add to what a field takes."""
    return policy.model_json_schema()


def naming_fields(policy: type[Policy]) -> dict[str, str]:
    """Return the kind of thing that each of a policy's fields names, such as `engines`; of fields that name any."""
    properties: Mapping[str, Any] = parameters_schema(policy)["properties"]
    found = {}
    for name, schema in properties.items():
        kinds = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
        if name in policy.engine_fields:
            found[name] = "engines"
        elif name in NAMED and all(part.get("type") == "string" and "enum" not in part for part in kinds):
            found[name] = NAMED[name]
    return found


def available_names(services: Services) -> dict[str, list[str]]:
    """Return the names that there are, by kind; collections are listed by `GET /v1/collections`."""
    kinds = set(NAMED.values()) - {"collections"}
    return {kind: list(getattr(services, kind)) for kind in sorted(kinds)}
