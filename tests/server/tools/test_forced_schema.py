"""The schema of forced calls holds what the tools' own schemas say, and nothing of one tool reaches another."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from waver.server.tools.forced_schema import arguments_schema, calls_schema
from waver.server.tools.schemas import Tool, deeper

TREE = {
    "type": "object",
    "properties": {"value": {"$ref": "#/$defs/number"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["value"],
    "$defs": {"number": {"type": "integer"}},
}
WORD = {"properties": {"word": {"$ref": "#/definitions/number"}}, "definitions": {"number": {"type": "string"}}}


def tool(parameters: Any, name: str = "f") -> Tool:
    function = {"name": name, **({} if parameters is None else {"parameters": parameters})}
    return Tool.model_validate({"type": "function", "function": function})


def accepts(schema: Any, value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def test_references_stay_within_their_tool() -> None:
    schema = calls_schema([tool(TREE, "tree"), tool(WORD, "word")], single=False)
    jsonschema.Draft202012Validator.check_schema(schema)
    good = [
        {"name": "tree", "arguments": {"value": 1, "next": {"value": 2, "next": None}}},
        {"name": "word", "arguments": {"word": "a"}},
    ]
    assert accepts(schema, good)
    for name, arguments in (("tree", {"value": "a"}), ("word", {"word": 1}), ("word", {"value": 1}), ("nope", {})):
        assert not accepts(schema, [{"name": name, "arguments": arguments}])
    assert not accepts(schema, [])
    assert not accepts(schema, good[0])
    assert accepts(calls_schema([tool(TREE, "tree"), tool(WORD, "word")], single=True), good[0])


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_tool_without_parameters_has_no_arguments(parameters: Any) -> None:
    schema = arguments_schema(tool(parameters))
    assert accepts(schema, {})
    assert not accepts(schema, {"a": 1})
    assert not accepts(schema, 1)


def test_properties_that_are_not_declared_are_barred_unless_allowed() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "integer"}}}
    schema = arguments_schema(tool({"properties": {"a": inner, "list": {"type": "array", "items": inner}}}))
    assert accepts(schema, {"a": {"b": 1}, "list": [{"b": 1}]})
    assert not accepts(schema, {"c": 1})
    assert not accepts(schema, {"a": {"c": 1}})
    assert not accepts(schema, {"list": [{"c": 1}]})
    assert accepts(arguments_schema(tool({"properties": {}, "additionalProperties": True})), {"c": 1})
    both = {"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]}
    assert accepts(arguments_schema(tool(both)), {"a": 1, "b": 2})


def test_data_and_names_are_no_references() -> None:
    given = {"properties": {"$ref": {"const": {"$ref": "#/x"}}}, "required": ["$ref"]}
    assert accepts(arguments_schema(tool(given), "#/$defs/tool_0"), {"$ref": {"$ref": "#/x"}})


def test_depth() -> None:
    nested: Any = 1
    for _ in range(5):
        nested = {"a": [nested]}
    assert not deeper(nested, 10)
    assert deeper(nested, 9)
