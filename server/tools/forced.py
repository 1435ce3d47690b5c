"""Read the answer to a forced call, which a grammar has made JSON from its first character on."""

from __future__ import annotations

from collections.abc import Sequence

from waver.engines.base import Finish
from waver.server.message.parts import Content, NewId, Part, new_call_id
from waver.server.tools.json_calls import JsonCalls
from waver.server.tools.json_scanner import SPACE


class ForcedCalls:
    """Reads a text that is one call or an array of calls (`PartReader`)."""

    def __init__(self, new_id: NewId = new_call_id) -> None:
        self._json = JsonCalls(0, new_id)
        self._behind: list[str] = []

    @property
    def complete(self) -> int:
        return self._json.complete

    @property
    def broken(self) -> int:
        return int(self._json.broken)

    def push(self, text: str, ids: Sequence[int] = ()) -> list[Part]:
        out: list[Part] = []
        for character in text:
            if self._json.broken:
                self._behind.append(character)
            elif not (self._json.ended and character in SPACE):
                self._json.push(character, out)
        self._json.flush(out)
        return out

    def finish(self, finish: Finish) -> list[Part]:
        out: list[Part] = []
        cut = finish == "length" and (self._json.begun or self.complete)  # what began behind whole calls is no content
        if not (self._json.ended or self._json.broken or cut):
            self._json.abandon(out)
        left = "".join([*self._json.raw, *self._behind])
        if self._json.broken and left.strip(" \t\r\n,]" if self.complete else None):
            out.append(Content(left))
        return out
