"""Split a text into reasoning, which stands in a think block at its beginning, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

OPENS, CLOSES = "<think>", "</think>"


class ThinkBlock:
    """Reads a text piece by piece. Line breaks at the edges of the block are part of neither side.

    Args:
        opened: the prompt has opened the block, so that the text begins in it.
    """

    def __init__(self, opened: bool = False, opens: str = OPENS, closes: str = CLOSES) -> None:
        self._opens, self._closes = opens, closes
        self.markers = frozenset((opens, closes))
        self._state: Literal["start", "opening", "entering", "inside", "closing", "outside"]
        # `opening`: the prompt has opened the block, and its tag may come again; `entering`: the tag has come.
        self.begin(opened)

    def begin(self, opened: bool) -> None:
        """Begin anew; `opened`: the text begins in the block."""
        self._state = "opening" if opened else "start"
        self._held = ""

    @property
    def inside(self) -> bool:
        """Return whether the text so far ends in the block."""
        return self._state in ("opening", "entering", "inside")

    def push(self, text: str, ids: Sequence[int] = ()) -> tuple[str, str]:
        """Take more of the text; return what it adds to the reasoning, and to the rest."""
        text, self._held = self._held + text, ""
        reasoning = ""
        if self._state in ("start", "opening", "entering"):
            text = self._begin(text)
        if self._state == "inside":
            reasoning, text = self._within(text)
        if self._state == "closing":
            text = text.lstrip("\r\n")
            if text:
                self._state = "outside"
        return reasoning, text

    def finish(self) -> tuple[str, str]:
        """Take the end of the text."""
        held, self._held = self._held, ""
        if self._state == "opening" and held.isspace():
            return "", ""
        return (held, "") if self.inside else ("", held)

    def _begin(self, text: str) -> str:
        """Take the beginning of the text, until it is clear whether a block opens; return what stands behind that."""
        bare = text.lstrip()
        tagged = self._state != "entering" and bare.startswith(self._opens)
        if tagged or self._state == "entering":
            bare = bare[len(self._opens) :].lstrip() if tagged else bare
            self._state = "inside" if bare else "entering"
            return bare
        if self._opens.startswith(bare):  # also where there is nothing yet
            self._held = text
            return ""
        self._state = "inside" if self._state == "opening" else "outside"
        return bare if self._state == "inside" else text

    def _within(self, text: str) -> tuple[str, str]:
        """Take text inside of the block: the reasoning, and what stands behind the block."""
        end = text.find(self._closes)
        if end >= 0:
            self._state = "closing"
            return text[:end].rstrip(), text[end + len(self._closes) :]
        safe = len(text[: len(text) - overlap(text, self._closes)].rstrip())
        self._held = text[safe:]
        return text[:safe], ""


def overlap(text: str, tag: str) -> int:
    """Return the length of the longest end of a text that a tag begins with, short of the whole tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
