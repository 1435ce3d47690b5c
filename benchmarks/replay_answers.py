"""Normalise answers for `waver bench replay`, which takes out what differs from run to run, and compare two of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

HEADERS = ("content-type", "x-waver-policy", "retry-after", "x-should-retry", "allow", "www-authenticate")
"""Headers of an answer that are compared."""
MASK = "…"
OBJECT_ID = re.compile(r"^[a-z]+-[0-9a-f]{32}$")
MOMENTS = frozenset({"created", "seconds", "bytes"})
"""Fields that tell times and durations, or sizes on disk."""
ROUNDING = 1e-4
"""Numbers that differ by at most so much, absolutely or as a share, differ by rounding."""
ABSENT = "(absent)"


def normalised(response: httpx.Response) -> dict[str, Any]:
    """Return status, headers and body of an answer; ids, times and durations are masked.

    The chunks of a stream come choice by choice: which of several choices is a step ahead is left to chance.
    """
    kind = response.headers.get("content-type", "").split(";")[0]
    body: Any = response.text
    if kind == "application/json":
        body = masked(response.json())
    elif kind == "text/event-stream":
        body = _stream(response.text)
    headers = {name: value for name in HEADERS if (value := response.headers.get(name)) is not None}
    return {"status": response.status_code, "headers": headers, "body": body}


def masked(value: Any) -> Any:
    if isinstance(value, list):
        return [masked(item) for item in value]
    if isinstance(value, dict):
        return {key: MASK if key in MOMENTS else masked(item) for key, item in value.items()}
    return f"{value.split('-')[0]}-{MASK}" if isinstance(value, str) and OBJECT_ID.match(value) else value


def _stream(text: str) -> list[Any]:
    events: list[Any] = []
    for line in text.splitlines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            events.append(data if data == "[DONE]" else masked(json.loads(data)))
        elif line and not line.startswith(":"):
            events.append(line)  # nothing else belongs into a stream
    return sorted(events, key=_choice)


def _choice(event: Any) -> float:
    choices = event.get("choices") if isinstance(event, dict) else None
    return choices[0]["index"] if choices else math.inf


@dataclass(frozen=True)
class Difference:
    """One place in an answer that is not what it was."""

    where: str
    before: Any
    after: Any

    @property
    def rounding(self) -> bool:
        """Return whether the difference is between two numbers that are nearly the same."""
        both = (self.before, self.after)
        numbers = all(isinstance(each, float) for each in both)
        return numbers and math.isclose(self.before, self.after, rel_tol=ROUNDING, abs_tol=ROUNDING)

    def __str__(self) -> str:
        return f"{self.where}: {_shown(self.before)} -> {_shown(self.after)}"


def _shown(value: Any) -> str:
    return value if value == ABSENT else json.dumps(value, ensure_ascii=False)


def differences(before: Any, after: Any, where: str = "") -> Iterator[Difference]:
    """List the differences between two answers, down to single values; lists of different lengths are one difference.

    Lists of the same names are compared name by name, and their order is a difference of its own.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            place = f"{where}.{key}" if where else str(key)
            yield from differences(before.get(key, ABSENT), after.get(key, ABSENT), place)
    elif (names := _names(before)) and names != (others := _names(after)) and sorted(names) == sorted(others):
        yield Difference(f"{where} (order)", names, others)
        by_name = dict(zip(others, after, strict=True))
        for i, (name, one) in enumerate(zip(names, before, strict=True)):
            yield from differences(one, by_name[name], f"{where}[{i}]")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{where}[{i}]")
    elif type(before) is not type(after) or before != after:
        yield Difference(where, before, after)


def _names(value: Any) -> list[str]:
    """The names of a list's items, where each has one of its own; else none."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return []
    names = [item.get("name") for item in value]
    return names if all(isinstance(name, str) for name in names) and len(set(names)) == len(names) else []
