"""Render log lines for people on a terminal: the time, what happened, and what goes with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from typing import Any

DIM, BOLD, RED, YELLOW, GREEN, END = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[0m"
LEVELS = {"critical": RED, "error": RED, "warning": YELLOW}
HIDDEN = ("event", "level", "exception", "request_id")
"""Keys that have a place of their own on a line, or none: a request's id is shown where something went wrong."""


def wants_colour(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a terminal may be sent colours: not with NO_COLOR (https://no-color.org), nor to a dumb one."""
    return not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


class TextRenderer:
    """A processor of structlog that ends its chain: makes a line of a record.

    Args:
        colour: whether levels and states are coloured.
    """

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, _: Any, __: str, record: MutableMapping[str, Any]) -> str:
        level = str(record.get("level", "info"))
        when = self._in(DIM, f"{datetime.now():%H:%M:%S}")
        is_request = record.get("event") == "request" and "path" in record
        line = f"{when}  {self._request(record) if is_request else self._event(record, level)}"
        trouble = record.get("exception")
        return "\n".join([line, harmless(str(trouble), keep="\n")]) if trouble else line

    def _event(self, record: Mapping[str, Any], level: str) -> str:
        colour = LEVELS.get(level)
        event = self._in(colour or BOLD, harmless(str(record.get("event", ""))))
        name = f"{self._in(colour, level)}: " if colour else ""
        hidden = HIDDEN[:3] if colour else HIDDEN
        rest = self._pairs({key: value for key, value in record.items() if key not in hidden})
        return f"{name}{event}{rest}"

    def _request(self, record: Mapping[str, Any]) -> str:
        status = int(record.get("status", 0))
        colour = RED if status >= 500 else YELLOW if status >= 400 else GREEN
        named = ("method", "path", "status", "seconds")
        hidden = HIDDEN if status < 500 else HIDDEN[:3]
        rest = self._pairs({key: value for key, value in record.items() if key not in (*hidden, *named)})
        what = harmless(f"{record.get('method')} {record.get('path')}")
        return f"{self._in(colour, str(status))} {what} {record.get('seconds', 0):.2f} s{rest}"

    def _pairs(self, values: Mapping[str, Any]) -> str:
        shown = [f"{key}={harmless(_short(value))}" for key, value in values.items()]
        return f"  {self._in(DIM, ' '.join(shown))}" if shown else ""

    def _in(self, style: str | None, text: str) -> str:
        return f"{style}{text}{END}" if style and self._colour else text


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{_short(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def harmless(text: str, keep: str = "") -> str:
    """Return a text whose control characters and separators of lines are escaped, except those to keep: what a client
    sends must not command the terminal."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)
