"""Check the size of a JSON schema that a client sends, before anything is compiled."""

from __future__ import annotations

import re
from collections.abc import Iterator
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


CROWDED = f" holds more than {MOST_NODES} values"
Place = tuple["Place | None", str]
"""The place of a value in a schema: that of what holds it, and the rest. They are written out where one is named."""


def crowded(value: Any) -> bool:
    """Return whether a JSON value holds more than `MOST_NODES` others; takes no longer where it holds far more."""
    todo, count = [value], 0
    while todo:
        each = todo.pop()
        if isinstance(each, dict | list):
            count += len(each)
            if count > MOST_NODES:
                return True
            todo += each.values() if isinstance(each, dict) else each
    return False


def flaw(schema: Any) -> str | None:
    """Find what exceeds a bound in a schema, as the end of a sentence that begins with its name; None if nothing. Takes
    tens of milliseconds for the largest: not for an event loop."""
    if crowded(schema):
        return CROWDED
    nodes = properties = 0
    todo: list[tuple[Any, Place, int, bool]] = [(schema, (None, ""), 0, True)]
    while todo:
        value, place, depth, is_schema = todo.pop()
        nodes += 1
        if nodes > MOST_NODES:
            return CROWDED
        if depth > MOST_DEPTH:
            return f"{_written(place)} is nested more than {MOST_DEPTH} levels deep"
        if isinstance(value, list):
            todo += [(each, (place, f"[{i}]"), depth + 1, is_schema) for i, each in enumerate(value)]
        elif isinstance(value, dict):
            if is_schema and (found := _of_keywords(value)):
                return f"{_written(place)}.{found}"
            properties += _own_properties(value) if is_schema else 0
            if properties > MOST_PROPERTIES:
                return f" has more than {MOST_PROPERTIES} properties"
            named = [each for key, each in value.items() if is_schema and _has_names(key, each)]
            nodes += sum(map(len, named))
            todo += _children(value, place, depth, is_schema)
    return None


def _written(place: Place) -> str:
    """Write the place of a value, as far as it is short."""
    parts: list[str] = []
    holder: Place | None = place
    while holder is not None:
        holder, rest = holder
        parts.append(rest)
    return "".join(reversed(parts))[:120]


def _children(
    value: dict[str, Any], place: Place, depth: int, is_schema: bool
) -> Iterator[tuple[Any, Place, int, bool]]:
    """The values in an object of a schema, each with its place, its depth, and whether it is a schema."""
    for key, each in value.items():
        if is_schema and _has_names(key, each):
            yield from ((one, (place, f".{key}.{name[:40]}"), depth + 2, True) for name, one in each.items())
        else:
            yield each, (place, f".{key[:40]}"), depth + 1, is_schema and key not in VALUES


def _has_names(key: str, value: Any) -> bool:
    """Return whether the keys of a keyword's value are names."""
    return key in NAMES and isinstance(value, dict)


def _own_properties(schema: dict[str, Any]) -> int:
    """Count the properties that an object of a schema declares itself."""
    own = schema.get("properties")
    return len(own) if isinstance(own, dict) else 0


def _of_keywords(schema: dict[str, Any]) -> str | None:
    """Find what exceeds a bound among the keywords of one object of a schema."""
    if "x-guidance" in schema:
        return "x-guidance cannot be set by a request"
    for key in schema.keys() & LARGEST.keys():
        value = schema[key]
        if isinstance(value, int | float) and value > LARGEST[key]:
            return f"{key} should be at most {LARGEST[key]}"
    pattern, found = schema.get("pattern"), schema.get("patternProperties")
    if pattern is None and found is None:
        return None
    for key, each in [
        ("pattern", pattern),
        *(("patternProperties", one) for one in (found if isinstance(found, dict) else ())),
    ]:
        if isinstance(each, str) and (reason := pattern_flaw(each)):
            return f"{key} {reason}"
    return None


def pattern_flaw(pattern: str) -> str | None:
    """Find what exceeds a bound in a regular expression, as the end of a sentence; None if nothing."""
    if len(pattern) > LONGEST_PATTERN:
        return f"should have at most {LONGEST_PATTERN} characters"
    if repeats(pattern) > MOST_REPEATS:
        return f"repeats a part more than {MOST_REPEATS} times"
    return None


def repeats(pattern: str) -> int:
    """Count the most copies of a part that a regular expression stands for: bounds of `{n,m}`, multiplied through
    groups."""
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
