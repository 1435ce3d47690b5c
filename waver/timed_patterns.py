"""Search for patterns that users write, within a time: such patterns need not be linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import regex

SECONDS = 0.05
"""Time that all patterns together may take on one text, in equal shares: a server's other requests wait for it."""


def searcher(patterns: Sequence[str]) -> Callable[[str], list[bool]]:
    """Make a function that tells which patterns a text contains; one that takes too long counts as not
    contained.

    Raises:
        ValueError: one is no pattern.
    """
    try:
        made = [regex.compile(each) for each in patterns]
    except regex.error as error:
        raise ValueError(str(error)) from None

    def contained(text: str) -> list[bool]:
        return [_contains(each, text, SECONDS / len(made)) for each in made]

    return contained


def _contains(pattern: regex.Pattern[str], text: str, seconds: float) -> bool:
    try:
        return pattern.search(text, timeout=seconds) is not None
    except TimeoutError:
        return False
