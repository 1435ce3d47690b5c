"""Bounds on a JSON schema that a client sends, looked at before anything is compiled."""

from __future__ import annotations

import re
from typing import Any

MOST_CHARACTERS = 262_144
MOST_NODES = 20_000
"""Values of every kind in a schema, keys not counted."""
MOST_DEPTH = 64
MOST_PROPERTIES = 5000
"""Of all objects together; as with OpenAI."""
LARGEST = {
    "minItems": 10_000, "maxItems": 10_000, "minContains": 10_000, "maxContains": 10_000,
    "minProperties": 1000, "maxProperties": 10_000,
    "minLength": 100_000, "maxLength": 1_000_000,
}  # fmt: skip
"""The largest number that each keyword may have."""
LONGEST_PATTERN = 4096
MOST_REPEATS = 10_000
"""Of a part of a pattern: repeats within repeats are multiplied."""
_REPEAT = re.compile(r"\{(\d{1,9})?,?(\d{1,9})?\}")
NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose keys are names that a client chose, and not keywords."""
VALUES = frozenset({"enum", "const", "default", "examples"})
"""Keywords whose values are data, and not schemas."""


def flaw(schema: Any) -> str | None:
    """What is wrong with the size of a schema, as the end of a sentence that begins with its name; None if nothing."""
    nodes = properties = 0
    todo: list[tuple[Any, str, int, bool]] = [(schema, "", 0, True)]
    while todo:
        value, place, depth, is_schema = todo.pop()
        nodes += 1
        if nodes > MOST_NODES:
            return f" holds more than {MOST_NODES} values"
        if depth > MOST_DEPTH:
            return f"{place[:120]} is nested more than {MOST_DEPTH} levels deep"
        if isinstance(value, list):
            todo += [(each, f"{place}[{i}]", depth + 1, is_schema) for i, each in enumerate(value[: MOST_NODES + 1])]
        elif isinstance(value, dict):
            if is_schema and (found := _of_keywords(value)):
                return f"{place[:120]}.{found}"
            properties += len(value["properties"]) if is_schema and isinstance(value.get("properties"), dict) else 0
            if properties > MOST_PROPERTIES:
                return f" has more than {MOST_PROPERTIES} properties"
            for key, each in value.items():
                if is_schema and key in NAMES and isinstance(each, dict):
                    nodes += len(each)
                    todo += [(one, f"{place}.{key}.{name[:40]}", depth + 2, True) for name, one in each.items()]
                else:
                    todo.append((each, f"{place}.{key[:40]}", depth + 1, is_schema and key not in VALUES))
    return None


def _of_keywords(schema: dict[str, Any]) -> str | None:
    """What is wrong with the keywords of one object of a schema."""
    if "x-guidance" in schema:
        return "x-guidance cannot be set by a request"
    for key, most in LARGEST.items():
        value = schema.get(key)
        if isinstance(value, int | float) and value > most:
            return f"{key} should be at most {most}"
    pattern = schema.get("pattern")
    found = schema.get("patternProperties")
    for key, each in [
        ("pattern", pattern),
        *(("patternProperties", one) for one in (found if isinstance(found, dict) else ())),
    ]:
        if isinstance(each, str) and (reason := _of_pattern(each)):
            return f"{key} {reason}"
    return None


def _of_pattern(pattern: str) -> str | None:
    if len(pattern) > LONGEST_PATTERN:
        return f"should have at most {LONGEST_PATTERN} characters"
    if repeats(pattern) > MOST_REPEATS:
        return f"repeats a part more than {MOST_REPEATS} times"
    return None


def repeats(pattern: str) -> int:
    """The most copies of a part that a regular expression stands for: bounds of `{n,m}`, multiplied through groups."""
    inside = [1]
    """The most copies within each open group; the first is the whole pattern."""
    last, i, bracket = 1, 0, False
    while i < len(pattern):
        c = pattern[i]
        step = 1
        if c == "\\":
            step, last = 2, 1
        elif bracket:
            bracket = c != "]"
            last = 1
        elif c == "[":
            bracket, last = True, 1
        elif c == "(":
            inside.append(1)
            last = 1
        elif c == ")" and len(inside) > 1:
            last = inside.pop()
        elif c == "{" and (found := _REPEAT.match(pattern, i)):
            last *= max(1, *(int(n) for n in found.groups(default="1")))
            step = len(found.group())
        elif c not in "?+*":
            last = 1
        inside[-1] = max(inside[-1], last)
        i += step
    return max(inside)
