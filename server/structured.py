"""Find what an answer must look like: `response_format`, vLLM's `structured_outputs` and `guided_…`, and the names that
other servers have for the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from waver.engines.grammar_forms import choice, lark, regex, structural_tag
from waver.engines.schema import MOST_CHARACTERS, flaw, pattern_flaw
from waver.server.closed_schema import closed
from waver.server.errors import invalid
from waver.server.fields import WHITE_SPACE
from waver.server.schemas import Generation, ResponseFormat, StructuredOutputs

SCHEMA = "response_format.json_schema.schema"
ANY_OBJECT = '{"type": "object"}'
MOST_CHOICES = 1024


@dataclass(frozen=True)
class Form:
    """The form of an answer: its `grammar`, as `Sampling.grammar` has it, and the field that asks for it."""

    grammar: str
    param: str


def form(body: Generation) -> Form | None:
    """Return the form that an answer must have; None for free text. Sizes are checked; nothing is compiled.

    Raises:
        APIError: 400, it is malformed, larger than it may be, or several fields ask for one.
    """
    asked = [*_of_response_format(body.response_format), *_of_structured_outputs(body.structured_outputs)]
    for name, field in ALIASES.items():
        if (value := getattr(body, name)) is not None:
            asked += _of_value(field, value, name)
    if len(asked) > 1:
        raise invalid(f"{asked[0].param} and {asked[1].param} exclude each other.", asked[1].param)
    return asked[0] if asked else None


async def wanted_form(body: Generation) -> Form | None:
    """Return the form that an answer must have, as `form`, looked at outside of the event loop."""
    return await asyncio.to_thread(form, body) if shaped(body) else None


def shaped(body: Generation) -> bool:
    """Return whether a request asks for a form."""
    return (body.response_format is not None and body.response_format.type != "text") or shaped_otherwise(body)


def shaped_otherwise(body: Generation) -> bool:
    """Return whether a request asks for a form by another field than `response_format`."""
    return body.structured_outputs is not None or any(getattr(body, name) is not None for name in ALIASES)


def _of_response_format(wanted: ResponseFormat | None) -> list[Form]:
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "structural_tag":
        if wanted.structures is None:
            raise invalid(
                "response_format.structures is required when the type is 'structural_tag'.", "response_format"
            )
        tag = {"structures": wanted.structures, "triggers": wanted.triggers}
        return _of_value("structural_tag", tag, "response_format")
    if wanted.type == "json_object" or wanted.json_schema is None:
        if wanted.schema_ is not None:
            return _of_value("json", wanted.schema_, "response_format.schema")
        if wanted.type == "json_object":
            return [Form(ANY_OBJECT, "response_format")]
        raise invalid(
            "response_format.json_schema is required when the type is 'json_schema'.", "response_format.json_schema"
        )
    return [Form(_json(wanted.json_schema.schema_, SCHEMA), SCHEMA)]


def _of_structured_outputs(wanted: StructuredOutputs | None) -> list[Form]:
    if wanted is None:
        return []
    found = []
    for field in WRITERS:
        value = getattr(wanted, "json_" if field == "json" else field)
        if value not in (None, False):
            found += _of_value(field, value, f"structured_outputs.{field}")
    for name in ("whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"):
        if getattr(wanted, name):
            why = f": {WHITE_SPACE}" if "whitespace" in name else ""
            raise invalid(f"structured_outputs.{name} is not supported{why}.", f"structured_outputs.{name}")
    if not found:
        raise invalid(f"structured_outputs should have one of {', '.join(WRITERS)}.", "structured_outputs")
    return found


def _of_value(field: str, value: Any, param: str) -> list[Form]:
    return [Form(WRITERS[field](value, param), param)]


def _json(schema: Any, param: str) -> str:
    """Write a JSON schema, given as an object or as a string, as a grammar."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise invalid(f"{param} should be a JSON schema: an object, or a string of JSON.", param) from None
    if not isinstance(schema, dict):
        raise invalid(f"{param} should be a JSON schema: an object, or a string of JSON.", param)
    if reason := flaw(schema):
        raise invalid(f"{param}{reason}.", param)
    _bounded(json.dumps(schema), param)
    return json.dumps(closed(schema))


def _regex(pattern: Any, param: str) -> str:
    text = _text(pattern, param)
    if reason := pattern_flaw(text):
        raise invalid(f"{param} {reason}.", param)
    return regex(text)


def _choice(choices: Any, param: str) -> str:
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise invalid(f"{param} should be a list of strings that are not empty.", param)
    if len(choices) > MOST_CHOICES:
        raise invalid(f"{param} should have at most {MOST_CHOICES} items.", param)
    return _bounded(choice(choices), param)


def _grammar(text: Any, param: str) -> str:
    try:
        return lark(_bounded(_text(text, param), param))
    except ValueError as error:
        raise invalid(f"{param} cannot be read as a grammar in Lark's or GBNF's notation: {error}.", param) from None


def _structural_tag(tag: Any, param: str) -> str:
    if isinstance(tag, str):
        try:
            tag = json.loads(_bounded(tag, param))
        except (ValueError, RecursionError):
            raise invalid(f"{param} should be a JSON object, or a string of JSON.", param) from None
    try:
        for structure in tag["structures"]:
            _json(structure["schema"], param)
        return _bounded(structural_tag(tag), param)
    except (ValueError, TypeError, KeyError):
        raise invalid(
            f"{param} should have triggers (strings) and structures, each with begin, schema and end; begin has one of "
            "the triggers in front.",
            param,
        ) from None


def _any_object(wanted: Any, param: str) -> str:
    if wanted is not True:
        raise invalid(f"{param} should be true or false.", param)
    return ANY_OBJECT


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise invalid(f"{param} should be a string that is not empty.", param)
    return value


def _bounded(text: str, param: str) -> str:
    if len(text) > MOST_CHARACTERS:
        raise invalid(f"{param} has more than {MOST_CHARACTERS} characters.", param)
    return text


WRITERS: dict[str, Callable[[Any, str], str]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
    "json_object": _any_object,
}
"""For each field of `structured_outputs`, what makes a grammar of its value."""
ALIASES = {
    "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar",
    "guided_json_object": "json_object", "structural_tag": "structural_tag",
    "json_schema": "json", "regex": "regex", "grammar": "grammar", "ebnf": "grammar",
}  # fmt: skip
"""Top-level fields of a request (vLLM's older ones, SGLang's, llama.cpp's) by the field of `structured_outputs`."""
