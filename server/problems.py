"""Say what is wrong with a configuration, and where it stands: a file and a line, a variable, or a flag."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Place = tuple[str | int, ...]
"""Keys and positions that lead to a value, as `("presets", "frugal", 0, "threshold")`."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a sentence for the user, and the place of what it is about.

    `source` is where that was given (`waver.yaml`, `WAVER_SERVER__PORT`, `--port`), None where nobody has looked yet;
    `line` counts from 1. A warning does not keep a server from starting.
    """

    message: str
    place: Place = ()
    level: Literal["error", "warning"] = "error"
    source: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = "" if self.source is None else f"{self.source}:{self.line}: " if self.line else f"{self.source}: "
        return f"{where}{self.message}"


class ConfigError(ValueError):
    """A configuration cannot be used; its message has a line for each of `problems`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class MisplacedError(ValueError):
    """A value contradicts another one. Raised inside a model's validator, where pydantic would name the whole model."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place
