"""Check what a request's key may do with collections, also with those that the policies of a request look into."""

from __future__ import annotations

from waver.retrieval.base import NoCollection
from waver.server.errors import APIError
from waver.server.permissions import collections_in, denied, operators
from waver.server.routing import Route
from waver.server.runtime import Runtime
from waver.server.tenants.grant import current
from waver.server.tenants.owners import NONE, OWN, READ, WRITE, Level


async def level_of(here: Runtime, name: str) -> Level:
    """Return what the key may do with a collection, whether it is there or not."""
    if current().admin:
        return OWN
    return (await here.owners.of(name)).level(current(), name)


async def require(here: Runtime, name: str, level: Level) -> None:
    """Check that the key may do so much with a collection.

    Raises:
        NoCollection: it may not even see it.
        APIError: 403.
    """
    has = await level_of(here, name)
    if has == NONE:
        raise NoCollection(f"There is no collection '{name[:80]}'.")
    if has < level:
        can = "searched" if has == READ else "searched and filled"
        raise denied(f"The collection '{name}' belongs to somebody else: with this key it can only be {can}.", "name")


async def check_lookups(here: Runtime, route: Route) -> None:
    """Check that the key may search the collections that the policies of a request look into. Those of the server's own
    that the configuration names, in the preset or as a policy's default, may be used through it by everybody.

    Raises:
        APIError: 404, one of them is not there for this key; 403, summaries would be written into it.
    """
    who = current()
    if who.admin:
        return
    named = frozenset(collections_in(operators(here.config, who, route)))
    for policy in route.policies:
        for name in collections_in(
            [policy.model_dump(), *(here.config.presets[each] for each in policy.helping_presets)]
        ):
            ownership = await here.owners.of(name)
            level = ownership.level(who, name)
            by_operator = ownership.owner is None and name in named
            place = route.places.get(policy.name)
            param = f"{place}.collection" if place else "policy"
            if level < READ and not by_operator:
                raise APIError(404, f"There is no collection '{name[:80]}'.", param=param, code="collection_not_found")
            if level < WRITE and not by_operator and getattr(policy, "summary", None) == "written":
                raise denied(
                    f"Written summaries are kept in the collection, and '{name}' can only be searched with this key: "
                    "use the summary 'lead'.",
                    f"{place}.summary" if place else "policy",
                )
