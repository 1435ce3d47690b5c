"""The JSON schema of forced calls, made of the schemas of the tools' parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from waver.engines.schema import NAMES, VALUES
from waver.server.closed_schema import ELSEWHERE, JOINING, closed
from waver.server.tools.schemas import Tool

MOST_CALLS = 32
"""Calls of one answer: a small model would go on for ever."""


def calls_schema(tools: Sequence[Tool], single: bool) -> dict[str, Any]:
    """Make the schema of an array of calls, or of a single one.

    The parameters of each tool are a definition of their own, and references within them are moved there with them.
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": {"$ref": f"#/$defs/{_name(i)}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, tool in enumerate(tools)
    ]
    one: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    whole = one if single else {"type": "array", "minItems": 1, "maxItems": MOST_CALLS, "items": one}
    return {**whole, "$defs": {_name(i): arguments_schema(tool, f"#/$defs/{_name(i)}") for i, tool in enumerate(tools)}}


def _name(i: int) -> str:
    return f"tool_{i}"


def arguments_schema(tool: Tool, place: str = "#") -> dict[str, Any]:
    """Return the schema of a tool's arguments, an object, as it stands at `place`.

    What has properties and does not say whether it may have others has no others: they would be unknown to the
    function that is called.
    """
    schema = _moved(tool.function.parameters or {}, place)
    for key in ("$schema", "$id", "id"):
        if not isinstance(schema.get(key), dict):
            schema.pop(key, None)
    if not (JOINING | ELSEWHERE) & schema.keys():
        schema.setdefault("type", "object")
        if not schema.setdefault("properties", {}):
            schema.setdefault("additionalProperties", False)
    return closed(schema)


def _moved(schema: Any, place: str) -> Any:
    """Copy a schema, with references to its own parts as they are at `place`."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            out[key] = place + value[1:]
        elif key in NAMES and isinstance(value, dict):
            out[key] = {name: _moved(each, place) for name, each in value.items()}
        else:
            out[key] = value if key in VALUES else _moved(value, place)
    return out
