"""Check what a request's key may use: models, presets and policies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from waver.server.errors import APIError
from waver.server.tenants.grant import Identity, current

if TYPE_CHECKING:
    from waver.server.config import Config
    from waver.server.routing import Route


def denied(message: str, param: str | None = None) -> APIError:
    """Return a 403: the key may not do this."""
    return APIError(403, message, param=param, code="permission_denied")


def check_model(name: str, known: Iterable[str]) -> None:
    """Check that the key may use an engine, an embedder or a reranker.

    Raises:
        APIError: 404, as if there were none of the name.
    """
    allowed = current().grant.models
    if allowed is not None and name not in allowed:
        there = ", ".join(each for each in known if each in allowed) or "none"
        message = f"There is no model '{name[:80]}' for this key; there are: {there}."
        raise APIError(404, message, param="model", code="model_not_found")


def check_route(route: Route, config: Config) -> None:
    """Check that the key may use the engines, the preset and the policies of a request.

    Raises:
        APIError: 404, a model or a preset; 403, a policy.
    """
    who = current()
    grant = who.grant
    for name in presets_in(route):
        # The engines of a preset that a policy uses for a part of its work are not looked at: it has to be listed.
        listed = grant.presets if name == route.preset or grant.models is None else grant.presets or ()
        if listed is not None and name not in listed:
            shown = ", ".join(listed) or "none"
            message = f"There is no preset '{name[:80]}' for this key; there are: {shown}."
            raise APIError(404, message, param="policy", code="preset_not_found")
    if route.preset is not None and grant.presets is not None:
        return
    for engine in dict.fromkeys((route.engine, *route.engines)):
        check_model(engine, config.engines)
    if route.preset is None and grant.policies is not None:
        pinned = {each["name"] for each in _pinned(config, who)}
        for policy in route.policies:
            if policy.name not in grant.policies and policy.name not in pinned:
                shown = ", ".join(grant.policies) or "none"
                message = f"This key may not use the policy '{policy.name}'; it may use: {shown}."
                raise denied(message, route.places.get(policy.name, "policy"))


def presets_in(route: Route) -> list[str]:
    """Return the presets that a request uses: the one that it asks for, and those of parts of its policies' work."""
    asked = [] if route.preset is None else [route.preset]
    return [*asked, *(name for policy in route.policies for name in policy.helping_presets)]


def reserved(config: Config) -> Collection[str]:
    """Return the names of collections that the configuration uses: what they hold reaches other keys' answers."""
    items = [each for items in (*config.presets.values(), *config.pinned.values()) for each in items]
    return frozenset(collections_in([*items, *config.policies.values()]))


def operators(config: Config, who: Identity, route: Route) -> list[Mapping[str, Any]]:
    """Return what the operator has chosen for a request: the defaults of policies, what is pinned, and its presets."""
    presets = [item for name in presets_in(route) for item in config.presets[name]]
    return [*config.policies.values(), *_pinned(config, who), *presets]


def _pinned(config: Config, who: Identity) -> list[dict[str, Any]]:
    return [*config.pinned.get("*", []), *(config.pinned.get(who.name, []) if who.name is not None else [])]


def collections_in(value: Any) -> list[str]:
    """Find every collection that is named in parameters, however deep."""
    if isinstance(value, Mapping):
        own = [value["collection"]] if isinstance(value.get("collection"), str) else []
        return own + [name for part in value.values() for name in collections_in(part)]
    if isinstance(value, list | tuple):
        return [name for part in value for name in collections_in(part)]
    return []
