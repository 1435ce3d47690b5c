"""Whether a text gives an answer that is known."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

NUMBER = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def contains(text: str, answer: str) -> bool:
    """Whether a text has the answer in it, as whole words; case and spacing do not count."""
    wanted = _plain(answer)
    # Scripts without upper and lower case often write words without spaces between them.
    before, after = (
        r"\b" if each.isdigit() or each.lower() != each.upper() else "" for each in (wanted[0], wanted[-1])
    )
    return re.search(before + re.escape(wanted) + after, _plain(text)) is not None


def exact(text: str, answer: str) -> bool:
    """Whether a text is the answer and nothing else; case, spacing and a full stop at the end do not count."""
    return _plain(text).rstrip(" .") == _plain(answer).rstrip(" .")


def number(text: str, answer: str) -> bool:
    """Whether the last number in a text is the answer.

    Raises:
        ValueError: the answer is no number.
    """
    found = NUMBER.findall(text)
    return bool(found) and _value(found[-1]) == _value(answer)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _value(text: str) -> Decimal:
    return Decimal(text.strip().replace(",", ""))
