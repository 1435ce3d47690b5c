"""Turn pydantic's errors about a request into one readable sentence and the name of the field."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

SENTENCES = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this object",
    "model_type": "should be a JSON object",
    "model_attributes_type": "should be a JSON object",
    "dict_type": "should be a JSON object",
    "list_type": "should be an array",
    "int_type": "should be an integer",
    "int_from_float": "should be an integer",
    "string_type": "should be a string",
    "bool_type": "should be true or false",
    "float_type": "should be a number",
}

SCALARS = frozenset({"string_type", "int_type", "float_type", "bool_type"})
"""Complaints about one value that may be any scalar."""
ADDRESS = ("path", "query")
"""Places of what is wrong in the address of a request, not in its body."""


def explain(errors: Sequence[Any], body: Any) -> tuple[str, str | None]:
    """Return the most specific error as `(message, param)`, `param` in the form `messages[0].content`."""
    if errors[0]["type"] == "json_invalid":
        reason = str(errors[0].get("ctx", {}).get("error", "")).lower()
        return f"The body is not valid JSON: {reason} at character {errors[0]['loc'][-1]}.", None
    # Every branch of a union complains; the one that got furthest into the body is the one that was meant.
    where = [
        [str(error["loc"][1])]
        if error["loc"][0] in ADDRESS
        else path(error["loc"][1:], body, missing=error["type"] == "missing")
        for error in errors
    ]
    deepest = max(range(len(errors)), key=lambda i: (len(where[i]), not errors[i]["type"].endswith("_type")))
    error, param = errors[deepest], ".".join(where[deepest]).replace(".[", "[")[:200]
    if not param:
        if isinstance(body, bytes):
            return "The body should be JSON, sent with the header 'Content-Type: application/json'.", None
        return "The body should be a JSON object.", None
    if error["type"] == "value_error":
        return f"{param}: {error['msg'].removeprefix('Value error, ')}", param
    if {each["type"] for each, place in zip(errors, where, strict=True) if place == where[deepest]} >= SCALARS:
        return f"{param} should be a string, a number, true, false or null.", param
    if error["type"] == "union_tag_invalid":
        param = f"{param}.{error['ctx']['discriminator'].strip(chr(39))}"
        known = error["ctx"]["expected_tags"].split(", ")
        return f"{param} should be {', '.join(known[:-1])} or {known[-1]}.", param
    if error["type"] == "too_long":
        return f"{param} should have at most {error['ctx']['max_length']} items.", param
    if error["type"] == "string_too_long":
        return f"{param} should have at most {error['ctx']['max_length']} characters.", param
    if error["type"] == "too_short" or (error["type"] == "string_too_short" and error["ctx"]["min_length"] == 1):
        return f"{param} should not be empty.", param
    sentence = SENTENCES.get(error["type"]) or re.sub(r"^Input should", "should", error["msg"])
    return f"{param} {sentence}.", param


def path(loc: Sequence[str | int], body: Any, missing: bool = False) -> list[str]:
    """Convert pydantic's location to the body's own keys, without the labels that pydantic adds for branches of a
    union."""
    out = []
    for depth, part in enumerate(loc):
        if isinstance(part, int) and isinstance(body, list) and part < len(body):
            out.append(f"[{part}]")
            body = body[part]
        elif isinstance(body, dict) and (part in body or (missing and depth == len(loc) - 1)):
            out.append(str(part))
            body = body.get(part)
    return out
