"""Close the objects of a JSON schema: one that lists properties, and does not speak of others, has no others.

Without that a small model goes on inventing properties until its limit. Every value of a closed schema is one of the
schema that was given.
"""

from __future__ import annotations

from typing import Any

JOINING = frozenset({
    "allOf", "oneOf", "not", "if", "$dynamicRef", "patternProperties", "dependentSchemas", "unevaluatedProperties",
})  # fmt: skip
"""Keywords beside which an object's properties may not be all that it has."""
ELSEWHERE = frozenset({"anyOf", "$ref"})
"""Keywords that join what is elsewhere with the properties beside them."""
DEFINITIONS = ("$defs", "definitions")


def closed(schema: Any) -> Any:
    """Copy a schema, with `additionalProperties: false` where objects list properties and do not say otherwise.

    Definitions are closed where the schema joins nothing: two closed objects have no value in common.
    """
    made = _closed(schema)
    if isinstance(made, dict) and not _joins(schema):
        for key in DEFINITIONS:
            if isinstance(made.get(key), dict):
                made[key] = {name: _closed(each) for name, each in made[key].items()}
    return made


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict) or JOINING & schema.keys():
        return schema
    out = dict(schema)
    listed = out.get("properties")
    if ELSEWHERE & out.keys():
        if not listed and isinstance(out.get("anyOf"), list):
            out["anyOf"] = [_closed(each) for each in out["anyOf"]]
        return out
    if isinstance(listed, dict):
        out["properties"] = {name: _closed(each) for name, each in listed.items()}
        if listed:
            out.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = _closed(out[key])
    return out


def _joins(schema: Any) -> bool:
    """Return whether a part of a schema may have to fit another one, too."""
    if isinstance(schema, list):
        return any(_joins(each) for each in schema)
    if not isinstance(schema, dict):
        return False
    beside = ELSEWHERE & schema.keys() and {"properties", "required", "additionalProperties"} & schema.keys()
    return bool(JOINING & schema.keys() or beside or any(_joins(each) for each in schema.values()))
