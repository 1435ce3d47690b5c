"""The metadata before a Markdown document: YAML between lines of `---`, TOML between lines of `+++`."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from waver.retrieval.base import Scalar

SCALARS = (str, int, float, bool, datetime.date)
FENCES = {"---": ("---", "..."), "+++": ("+++",)}
MOST = 65_536
"""Characters of it that are read."""
MOST_KEYS, MOST_TEXT, MOST_VISITED = 48, 8192, 1000
"""Keys and characters of metadata that are kept of it, and values that are looked at."""


def split(content: str) -> tuple[dict[str, Scalar], str, tuple[str, ...]]:
    """A document's front matter, flat (`a.b` for what is nested, lists of values with commas between them), the rest,
    and a sentence where some was left out. Without front matter: nothing, and all of it."""
    content = content.replace("\r\n", "\n")
    fence, _, rest = content.partition("\n")
    ends = FENCES.get(fence.rstrip())
    if ends is None:
        return {}, content, ()
    head = rest[:MOST]
    lines = head.split("\n")
    last = next((i for i, line in enumerate(lines) if line.rstrip() in ends), None)
    if last is None:
        return {}, content, ()
    written = "\n".join(lines[:last])
    try:
        found = tomllib.loads(written) if fence.startswith("+") else yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, content, ()
    if not isinstance(found, Mapping):
        return {}, content, ()
    kept, warnings = bounded(found)
    return kept, rest[len(written) + bool(written) :].partition("\n")[2], warnings


def bounded(found: Mapping[Any, Any]) -> tuple[dict[str, Scalar], tuple[str, ...]]:
    """As many of the values as a document may carry."""
    kept: dict[str, Scalar] = {}
    size, lost = 0, 0
    for visited, (key, value) in enumerate(flat(found, "")):
        size += len(key) + (len(value) if isinstance(value, str) else 8)
        if visited >= MOST_VISITED or len(kept) >= MOST_KEYS or size > MOST_TEXT:
            lost += 1
            break
        if key:
            kept[key] = value
    return kept, ("its front matter is too large: not all of it was kept",) if lost else ()


def flat(value: Any, name: str) -> Iterator[tuple[str, Scalar]]:
    """All values below one, with their dotted names; an empty name for what is no value, so that it is counted."""
    match value:
        case Mapping():
            yield "", None
            for key, below in value.items():
                yield from flat(below, f"{name}.{key}" if name else str(key))
        case list() | tuple() | set() if all(
            isinstance(each, str | int | float | bool | datetime.date) for each in value
        ):
            yield name, ", ".join(map(str, value))
        case list() | tuple() | set():
            yield "", None
            for i, below in enumerate(value):
                yield from flat(below, f"{name}.{i}")
        case bool() | int() | str() | None:
            yield name, value
        case float():
            yield name, value if value - value == 0 else str(value)
        case _:
            yield name, str(value)[:MOST_TEXT]
