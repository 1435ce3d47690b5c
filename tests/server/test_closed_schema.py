"""Closed schemas: what lists properties has no others, and every value of what was given in parts still has a place."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from waver.server.closed_schema import closed

TEXT = {"type": "string"}
ONE = {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}
TWO = {"type": "object", "properties": {"b": TEXT}, "required": ["b"]}


def accepts(schema: Any, value: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "schema",
    [
        ONE,
        {"anyOf": [ONE, {"type": "null"}]},
        {"$ref": "#/$defs/one", "$defs": {"one": ONE}},
        {"anyOf": [{"$ref": "#/$defs/one"}, {"type": "null"}], "$defs": {"one": ONE}},
        {"$ref": "#/definitions/one", "definitions": {"one": ONE}},
    ],
)
def test_what_lists_properties_has_no_others(schema: Any) -> None:
    before = {"a": "x", "c": 1}
    assert accepts(schema, before)
    for place, around in (
        (schema, lambda value: value),
        ({**{k: v for k, v in schema.items() if "def" in k}, "type": "array", "items": _bare(schema)}, lambda v: [v]),
        ({**{k: v for k, v in schema.items() if "def" in k}, "properties": {"p": _bare(schema)}}, lambda v: {"p": v}),
    ):
        made = closed(place)
        assert accepts(made, around({"a": "x"}))
        assert not accepts(made, around(before))
        assert closed(made) == made


def _bare(schema: Any) -> Any:
    return {k: v for k, v in schema.items() if "def" not in k}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object"}, {"c": 1}),
        ({"type": "object", "properties": {}}, {"c": 1}),
        ({**ONE, "additionalProperties": True}, {"a": "x", "c": 1}),
        ({**ONE, "additionalProperties": {"type": "integer"}}, {"a": "x", "c": 1}),
        ({"allOf": [ONE, TWO]}, {"a": "x", "b": "y"}),
        ({**ONE, "allOf": [TWO]}, {"a": "x", "b": "y"}),
        ({**ONE, "anyOf": [TWO]}, {"a": "x", "b": "y"}),
        ({**ONE, "patternProperties": {"^c": {}}}, {"a": "x", "c": 1}),
        ({**ONE, "$ref": "#/$defs/two", "$defs": {"two": TWO}}, {"a": "x", "b": "y"}),
        ({"allOf": [{"$ref": "#/$defs/one"}, TWO], "$defs": {"one": ONE}}, {"a": "x", "b": "y"}),
        (True, {"c": 1}),
    ],
)
def test_what_may_have_others_keeps_them(schema: Any, value: Any) -> None:
    assert accepts(schema, value)
    assert accepts(closed(schema), value)
