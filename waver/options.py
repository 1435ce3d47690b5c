"""Describe dataclass fields that a command line can set; `waver.cli.fill` turns them into options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """Command-line option of one field: `steps: Annotated[int, Option("Generations.", least=1)] = 100`.

    Name, type and default are the field's own.

    Args:
        help: a line for `--help`.
        flags: names on the command line, where they are not made of the field's name.
        least: the smallest value. most: the largest.
        shown: what `--help` shows as the default, where the value would not say it.
        variable: an environment variable that sets it too.
        read: makes the value from the text that was given; raises ValueError with a sentence.
    """

    help: str
    flags: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    shown: str | None = None
    variable: str | None = None
    read: Callable[[str], Any] | None = None
