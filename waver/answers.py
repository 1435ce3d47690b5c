"""Score answers: compare a text with a known answer.

Policies, clients, training and benchmarks share these functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from decimal import Decimal

NUMBER = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")

CHOICES = (
    re.compile(r"\b[Aa]nswer\b[ \t:*]{0,8}(?:is|was)?[ \t:*(\[]{0,8}([A-J])\b(?! [a-z])"),
    re.compile(r"\A[\s*(\[]{0,8}([A-Ja-j])[*)\]]{0,4}(?:[.):\s]{0,4}\Z|[.):])"),
    re.compile(r"(?:[(\[]|\*\*)([A-J])(?:[)\]]|\*\*|[.:])"),
    re.compile(r"(?<![\w'])([A-J])(?![\w']| [a-z])"),
)
"""The places where a text says which option it chooses, the surest first."""


def contains(text: str, answer: str) -> bool:
    """Return whether a text contains the answer as whole words, ignoring case and spacing."""
    wanted = _plain(answer)
    if not wanted:
        return False
    # Scripts without upper and lower case often write words without spaces between them.
    before, after = (
        r"\b" if each.isdigit() or each.lower() != each.upper() else "" for each in (wanted[0], wanted[-1])
    )
    return re.search(before + re.escape(wanted) + after, _plain(text)) is not None


def exact(text: str, answer: str) -> bool:
    """Return whether a text equals the answer, ignoring case, spacing and a full stop at the end."""
    return _plain(text).rstrip(" .") == _plain(answer).rstrip(" .")


def number(text: str, answer: str) -> bool:
    """Return whether the last number in a text equals the answer.

    Raises:
        ValueError: the answer is no number.
    """
    found = last_number(text)
    return found is not None and Decimal(found) == Decimal(answer.strip().replace(",", ""))


def choice(text: str, answer: str) -> bool:
    """Return whether a text chooses the option that the answer, a letter, names."""
    return chosen(text) == answer.strip().upper()


def chosen(text: str) -> str | None:
    """Return the letter, A to J, of the option that a text chooses, None if there is none: the last one that follows
    the word "answer", else the one that the text begins with, else the last in brackets or bold, else the last that
    stands alone and is no word of a sentence, as in "A frog"."""
    for pattern in CHOICES:
        if found := pattern.findall(text):
            return str(found[-1]).upper()
    return None


def last_number(text: str) -> str | None:
    """Return the last number in a text without its thousands separators, None if there is none."""
    found = NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def names_only(text: str, answer: str, others: Collection[str]) -> bool:
    """Return whether a text contains the answer, a single word, and none of the others."""
    words = set(re.findall(r"\w+", text))
    return answer in words and words.isdisjoint(set(others) - {answer})


SCORERS: dict[str, Callable[[str, str], bool]] = {
    "contains": contains,
    "exact": exact,
    "number": number,
    "choice": choice,
}
"""Scorers by the name that options and parameters give them."""


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
