"""Read calls of tools from JSON: `{"name": ..., "arguments": {...}}`, or an array of such objects.

A call's name and the text of its arguments are passed on while they are being written. What is passed on is always the
beginning of valid JSON; where the text breaks, the call is abandoned, and its text is content.
"""

from __future__ import annotations

import json
from typing import Any

from waver.server.message.parts import Abandoned, Arguments, CallStart, NewId, Part
from waver.server.tools.json_scanner import BrokenJson, Event, JsonScanner

ARGUMENTS = ("arguments", "parameters")
"""Keys of a call's arguments: most models', and Llama's."""


class JsonCalls:
    """One JSON text with calls. `push` takes characters until `ended` or `broken`.

    Args:
        first: the number of the next call.
    """

    def __init__(self, first: int, new_id: NewId) -> None:
        self.complete = 0
        self.broken = False
        self.raw: list[str] = []
        """The characters of the call that is being read, and of what stands before it; empty behind a complete call."""
        self.begun = False
        """True while a call has been passed on in part."""
        self.next, self._new_id = first, new_id
        self._scanner = JsonScanner()
        self._level = 1
        """Depth inside of a call's object."""
        self._fields: set[str] = set()
        self._key = ""
        self._text: list[str] | None = None
        """A key or value that is being read."""
        self._name: str | None = None
        self._held: list[str] | None = None
        """The arguments, as far as they have not been passed on; None before them."""
        self._streams = False
        """True while the value that is being read is passed on as it comes."""

    @property
    def ended(self) -> bool:
        return self._scanner.ended

    def push(self, character: str, out: list[Part]) -> None:
        """Take a character, and append what it adds to `out`."""
        self.raw.append(character)
        try:
            if self._scanner.ends_before(character):
                self._value_ends(self._scanner.depth, out)
            level = self._scanner.depth
            event = self._scanner.push(character)
            self._take(character, event, level, out)
        except BrokenJson:
            self.abandon(out)

    def abandon(self, out: list[Part]) -> None:
        """Give up the call that is being read."""
        self.broken = True
        if self.begun:
            self.flush(out)
            out.append(Abandoned(self.next))
            self.next += 1
            self.begun = False

    def flush(self, out: list[Part]) -> None:
        """Pass on what has come of the arguments."""
        if self.begun and self._streams and self._held:
            out.append(Arguments(self.next, "".join(self._held)))
            self._held = []

    def _take(self, character: str, event: Event | None, level: int, out: list[Part]) -> None:
        if event is Event.VALUE_START:
            self._value_starts(character, level)
        elif event is Event.KEY_START and level == self._level:
            self._text = []
        if self._streams and self._held is not None:
            self._held.append(character)
        elif self._text is not None:
            self._text.append(character)
        if event is Event.KEY_END and level == self._level:
            self._key, self._text = self._decoded(), None
        elif event is Event.VALUE_END:
            self._value_ends(self._scanner.depth, out)

    def _value_starts(self, character: str, level: int) -> None:
        if level == 0 and character in "{[":
            self._level = 1 if character == "{" else 2
        elif level == self._level - 1:
            if character != "{":
                raise BrokenJson
        elif level == self._level:
            if self._key in self._fields:
                raise BrokenJson
            self._fields.add(self._key)
            if self._key in ARGUMENTS and self._held is not None:
                raise BrokenJson
            self._streams = self._key in ARGUMENTS and character == "{"
            if self._streams:
                self._held = []
            else:
                self._text = []

    def _value_ends(self, level: int, out: list[Part]) -> None:
        if level == self._level:
            self._field_ends(out)
        elif level == self._level - 1:
            self._call_ends(out)

    def _field_ends(self, out: list[Part]) -> None:
        if self._key == "name":
            name = self._decoded()
            if not isinstance(name, str) or not name:
                raise BrokenJson
            self._name = name
        elif self._key in ARGUMENTS and not self._streams:
            self._held = [as_object(self._decoded())]
        self._text = None
        if self._name is not None and not self.begun:
            self.begun = True
            out.append(CallStart(self.next, self._new_id(), self._name))
        if self.begun and self._held:
            out.append(Arguments(self.next, "".join(self._held)))
            self._held = []
        self._streams = False

    def _call_ends(self, out: list[Part]) -> None:
        if not self.begun:
            raise BrokenJson
        if self._held is None:
            out.append(Arguments(self.next, "{}"))
        self.complete += 1
        self.next += 1
        self.begun, self.raw = False, []
        self._fields, self._key, self._name, self._held = set(), "", None, None

    def _decoded(self) -> Any:
        """Decode the key or value that has been read."""
        try:
            return json.loads("".join(self._text or ()))
        except (ValueError, RecursionError):
            raise BrokenJson from None


def as_object(value: Any) -> str:
    """Return arguments that are no JSON object as one: none at all, or an object that was written as a string.

    Raises:
        BrokenJson: they are neither.
    """
    if value is None or value == "":
        return "{}"
    try:
        if isinstance(value, str) and isinstance(json.loads(value), dict):
            return value.strip()
    except (ValueError, RecursionError):
        pass
    raise BrokenJson
