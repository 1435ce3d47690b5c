"""Read calls as Hermes and Qwen write them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from waver.engines.base import Finish
from waver.server.message.parts import Content, NewId, Part, new_call_id
from waver.server.message.thinking import overlap
from waver.server.tools.json_calls import JsonCalls
from waver.server.tools.json_scanner import SPACE

OPENS, CLOSES = "<tool_call>", "</tool_call>"
MARKERS = (OPENS, CLOSES)
"""Texts that mean something, also where a model has them as control tokens."""


class HermesCalls:
    """Splits a text into content and calls (`PartReader`).

    White space around a call is none of the content. A call that is complete counts also where its closing tag is
    missing. One that breaks is content, with its opening tag; reading goes on behind it.

    Args:
        single: read one call, and nothing behind it.
    """

    def __init__(self, single: bool = False, new_id: NewId = new_call_id) -> None:
        self.complete = self.broken = 0
        self._single = single
        self._new_id = new_id
        self._state: Literal["content", "call", "behind", "done"] = "content"
        self._held = ""
        """White space and the beginning of a tag that may follow it: content only if no tag does."""
        self._gap = ""
        """White space in front of the call that is being read."""
        self._json = JsonCalls(0, new_id)
        self._calls = 0
        """Calls that have been begun, complete or not."""

    def push(self, text: str, ids: Sequence[int] = ()) -> list[Part]:
        out: list[Part] = []
        left = text
        while left and self._state != "done":
            match self._state:
                case "content":
                    left = self._content(left, out)
                case "call":
                    left = self._call(left, out)
                case "behind":
                    left = self._behind(left)
        if self._state == "call":
            self._json.flush(out)
        return out

    def finish(self, finish: Finish) -> list[Part]:
        out: list[Part] = []
        if self._state == "call":
            if finish == "length" and self._json.begun:
                self._count()
            else:
                self._give_up(out)
        if self._state == "content" and self._held and (self._held.strip() or not self._calls):
            out.append(Content(self._held))
        self._held = ""
        return out

    def _content(self, text: str, out: list[Part]) -> str:
        """Take text outside of calls, up to an opening tag; return what stands behind it."""
        text, self._held = self._held + text, ""
        start = text.find(OPENS)
        if start >= 0:
            if before := text[:start].rstrip():
                out.append(Content(before))
            self._gap = text[len(before) : start]
            self._state, self._json = "call", JsonCalls(self._calls, self._new_id)
            return text[start + len(OPENS) :]
        safe = len(text[: len(text) - overlap(text, OPENS)].rstrip())
        if safe:
            out.append(Content(text[:safe]))
        self._held = text[safe:]
        return ""

    def _call(self, text: str, out: list[Part]) -> str:
        """Take the text of calls, up to their end; return what stands behind it."""
        for i, character in enumerate(text):
            self._json.push(character, out)
            complete = self._json.complete and not self._json.broken
            if complete and (self._single or self._json.ended):
                self._count()
                self._state = "done" if self._single else "behind"
                return text[i + 1 :]
            if self._json.broken or self._json.ended:
                rest = text[i + 1 :]
                self._give_up(out)
                return rest
        return ""

    def _behind(self, text: str) -> str:
        """Take what follows a call, up to the end of its closing tag; return what stands behind that."""
        text, self._held = self._held + text, ""
        bare = text.lstrip("".join(SPACE))
        if bare.startswith(CLOSES):
            self._state = "content"
            return bare[len(CLOSES) :]
        if CLOSES.startswith(bare):
            self._held = text
            return ""
        self._state = "content"
        return text

    def _give_up(self, out: list[Part]) -> None:
        """Turn the call that is being read into content."""
        raw = "".join(self._json.raw)
        self._json.abandon(out)
        self._count()
        self._state = "content"
        if self._json.complete and not raw.strip(" \t\r\n,]"):  # an array that was not closed
            return
        if not self._json.complete:
            raw = self._gap + OPENS + raw
        self.broken += 1
        # Its end may be the beginning of a tag.
        safe = len(raw) - overlap(raw, OPENS)
        out.append(Content(raw[:safe]))
        self._held = raw[safe:]

    def _count(self) -> None:
        self.complete += self._json.complete
        self._calls = self._json.next
