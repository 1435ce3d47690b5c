"""Find the final answer in a text, in a form that can be compared with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from waver.answers import NUMBER

Form = Literal["auto", "boxed", "number", "exact", "none"]
BOX = "\\boxed{"
SHORT = 12
"""Words up to which a whole text counts as an answer that can be compared."""


@dataclass(frozen=True)
class FinalAnswer:
    """A final answer: where it stands in the text, and what it is compared by."""

    start: int
    end: int
    key: str


def final_answer(text: str, form: Form) -> FinalAnswer | None:
    """Find the final answer; None where there is none that can be compared.

    Args:
        form: `boxed`: the content of the last `\\boxed{…}`; `number`: the last number; `exact`: the whole text;
            `auto`: the first of these that is there, of which the number must stand in the last line and the whole text
            be short; `none`: nothing is compared.
    """
    if form == "none":
        return None
    if form in ("auto", "boxed") and (found := _boxed(text)) is not None:
        return found
    if form == "number":
        return _number(text, 0)
    if form == "auto":
        last = text.rstrip()
        if (found := _number(text, last.rfind("\n") + 1)) is not None:
            return found
    if form == "exact" or (form == "auto" and 0 < len(text.split()) <= SHORT):
        start = len(text) - len(text.lstrip())
        end = len(text.rstrip())
        return FinalAnswer(start, end, _key(text).rstrip(" .")) if start < end else None
    return None


def _boxed(text: str) -> FinalAnswer | None:
    at = text.rfind(BOX)
    if at < 0:
        return None
    start, depth = at + len(BOX), 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            key = _key(text[start:end])
            return FinalAnswer(start, end, key) if key else None
    return None


def _number(text: str, start: int) -> FinalAnswer | None:
    """Find the last number from a place on; 1,234.50 and 1234.5 are the same."""
    found = None
    for found in NUMBER.finditer(text, start):  # noqa: B007  # the last one
        pass
    if found is None:
        return None
    key = found[0].replace(",", "")
    return FinalAnswer(found.start(), found.end(), key.rstrip("0").rstrip(".") if "." in key else key)


def _key(text: str) -> str:
    return " ".join(text.lower().split())
