"""Extract the search terms of a question, without stop words."""

from __future__ import annotations

import re

COMMON = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
"""Words that are not looked for, unless there are no others: Lucene's list."""
LOOKED_AT = 65_536
"""Characters of a question in which they are looked for."""
MOST = 64
"""Of a question; long questions are looked for by their first different words."""


def words(text: str) -> list[str]:
    """Return all words of a text in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def search_terms(question: str) -> list[str]:
    """Return the distinct search terms of a question, at most `MOST`."""
    found = list(dict.fromkeys(words(question[:LOOKED_AT])))
    return ([word for word in found if word not in COMMON] or found)[:MOST]
