"""Tell whether a JSON schema has a value that ends: a node that requires itself has none, and a model would write it
until its limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote


def endless(schema: Any) -> bool:
    """Return whether every value of a schema would hold itself.

    The references whose targets have a value are found as a least fixed point. What cannot be resolved, or is not
    understood, counts as having one: the compiler tells of it.
    """
    waiting = dict.fromkeys(_references(schema))
    known: set[str] = set()
    grown = True
    while grown:
        found = [each for each in waiting if _ends(_target(schema, each), known)]
        known.update(found)
        for each in found:
            del waiting[each]
        grown = bool(found)
    return not _ends(schema, known)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)
    elif isinstance(schema, dict):
        if isinstance(own := schema.get("$ref"), str):
            yield own
        for each in schema.values():
            yield from _references(each)


def _target(schema: Any, reference: str) -> Any:
    """Follow a JSON pointer (RFC 6901) within the schema; None where it leads nowhere."""
    if not reference.startswith("#"):
        return None
    place = schema
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict):
            place = place.get(name)
        elif isinstance(place, list) and name.isdecimal() and len(name) < 9 and int(name) < len(place):
            place = place[int(name)]
        else:
            return None
    return place


def _ends(schema: Any, known: set[str]) -> bool:
    """Return whether a schema has a value, where references outside of `known` have none."""
    if not isinstance(schema, dict) or {"const", "enum"} & schema.keys():
        return True
    if isinstance(own := schema.get("$ref"), str) and own not in known:
        return False
    for key, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        parts = schema.get(key)
        if isinstance(parts, list) and parts and not enough(_ends(each, known) for each in parts):
            return False
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or set(kinds) - {"object", "array"}:
        return True  # a text, a number or null holds nothing
    return ("object" in kinds and _object_ends(schema, known)) or ("array" in kinds and _array_ends(schema, known))


def _object_ends(schema: dict[str, Any], known: set[str]) -> bool:
    listed, required = schema.get("properties"), schema.get("required")
    if not isinstance(listed, dict) or not isinstance(required, list):
        return True
    return all(_ends(listed.get(name), known) for name in required if isinstance(name, str))


def _array_ends(schema: dict[str, Any], known: set[str]) -> bool:
    least, first = schema.get("minItems"), schema.get("prefixItems")
    if not isinstance(least, int) or least < 1:
        return True
    first = first if isinstance(first, list) else []
    return all(_ends(each, known) for each in first[:least]) and (
        least <= len(first) or _ends(schema.get("items"), known)
    )
