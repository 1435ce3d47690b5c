"""Scan long texts in windows: a regular expression holds the GIL for as long as it runs over one string, which would
stall every stream of the server."""

from __future__ import annotations

import re
from collections.abc import Iterator

WINDOW = 1 << 18
"""Characters that are scanned in one call: a few milliseconds."""
SEARCHED = 4096
"""Characters before a window's end in which a place inside of a word is looked for."""
_INSIDE = re.compile(r"\w(?=\w)")


def windows(text: str, size: int = WINDOW) -> Iterator[tuple[int, int]]:
    """Yield the parts of a text of at most `size` characters, as `(start, end)`, that end inside of words.

    No run of white space or punctuation is cut in two, unless it is so long that no word lies near a window's end.
    """
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            end = max((each.end() for each in _INSIDE.finditer(text, max(start, end - SEARCHED), end)), default=end)
        yield start, end
        start = end
