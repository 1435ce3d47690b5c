"""Search for patterns that users write, within a time: such a pattern need not be linear."""

from __future__ import annotations

from collections.abc import Callable

import regex

SECONDS = 0.05
"""Time that one pattern may take on one text."""


def searcher(pattern: str) -> Callable[[str], bool]:
    """Make a function that tells whether a text contains a pattern; one that takes too long counts as not contained.

    Raises:
        ValueError: it is no pattern.
    """
    try:
        made = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(str(error)) from None

    def contains(text: str) -> bool:
        try:
            return made.search(text, timeout=SECONDS) is not None
        except TimeoutError:
            return False

    return contains
