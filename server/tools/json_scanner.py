"""Check JSON one character at a time, so that a value can be passed on while it is still being written."""

from __future__ import annotations

from enum import Enum, auto

DEEPEST = 128
"""Containers within containers; more are taken for an error."""
SPACE = frozenset(" \t\r\n")
_DIGITS = frozenset("0123456789")
_NUMBER = {
    "-": {"0": "zero", **dict.fromkeys("123456789", "integer")},
    "zero": {".": "point", "e": "exponent", "E": "exponent"},
    "integer": {**dict.fromkeys(_DIGITS, "integer"), ".": "point", "e": "exponent", "E": "exponent"},
    "point": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": {**dict.fromkeys(_DIGITS, "fraction"), "e": "exponent", "E": "exponent"},
    "exponent": {"+": "sign", "-": "sign", **dict.fromkeys(_DIGITS, "power")},
    "sign": dict.fromkeys(_DIGITS, "power"),
    "power": dict.fromkeys(_DIGITS, "power"),
}
"""The next state of a number by its state and the next character."""
_WHOLE = frozenset({"zero", "integer", "fraction", "power"})
"""States in which a number may end."""


class Event(Enum):
    """A boundary in a JSON text."""

    KEY_START = auto()
    KEY_END = auto()
    VALUE_START = auto()
    VALUE_END = auto()


class BrokenJson(ValueError):
    """A character that cannot stand where it does."""


class JsonScanner:
    """The state of a JSON text that is read character by character. `depth`: containers that are open."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._state = "value"
        self._is_key = False
        self._number = ""
        self._left = ""
        """The rest of `true`, `false` or `null`, or of the digits of an escape."""

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def ended(self) -> bool:
        """Return whether a whole value has been read."""
        return self._state == "end"

    def ends_before(self, character: str) -> bool:
        """Return whether a number ends because of a character, which belongs to what follows. It has ended then.

        Raises:
            BrokenJson: it cannot end here.
        """
        if self._state != "number" or character in _NUMBER[self._number]:
            return False
        if self._number not in _WHOLE:
            raise BrokenJson
        self._after_value()
        return True

    def push(self, character: str) -> Event | None:
        """Take a character, for which `ends_before` has been asked.

        Raises:
            BrokenJson: it cannot stand here.
        """
        match self._state:
            case "string":
                return self._in_string(character)
            case "escape":
                if character not in '"\\/bfnrtu':
                    raise BrokenJson
                self._state, self._left = ("hex", "xxxx") if character == "u" else ("string", "")
            case "hex":
                if character not in "0123456789abcdefABCDEF":
                    raise BrokenJson
                self._left = self._left[1:]
                self._state = "hex" if self._left else "string"
            case "number":
                self._number = _NUMBER[self._number][character]
            case "literal":
                if not self._left.startswith(character):
                    raise BrokenJson
                self._left = self._left[1:]
                if not self._left:
                    self._after_value()
                    return Event.VALUE_END
            case _ if character not in SPACE:
                return self._between(character)
        return None

    def _in_string(self, character: str) -> Event | None:
        if character == "\\":
            self._state = "escape"
        elif character == '"':
            if self._is_key:
                self._state = "colon"
                return Event.KEY_END
            self._after_value()
            return Event.VALUE_END
        elif character < " ":
            raise BrokenJson
        return None

    def _between(self, character: str) -> Event | None:
        """Take a character that is neither space nor inside of a string, a number or a word."""
        state = self._state
        if state in ("first_key", "key") and character == '"':
            self._state, self._is_key = "string", True
            return Event.KEY_START
        if state == "colon" and character == ":":
            self._state = "value"
        elif state == "after" and character == ",":
            self._state = "key" if self._open[-1] == "{" else "value"
        elif (character == "}" and self._may_close("{", "first_key")) or (
            character == "]" and self._may_close("[", "first_value")
        ):
            self._open.pop()
            self._after_value()
            return Event.VALUE_END
        elif state in ("value", "first_value"):
            self._begin(character)
            return Event.VALUE_START
        else:
            raise BrokenJson
        return None

    def _may_close(self, opened: str, empty: str) -> bool:
        return bool(self._open) and self._open[-1] == opened and self._state in ("after", empty)

    def _begin(self, character: str) -> None:
        if character in "{[":
            if len(self._open) == DEEPEST:
                raise BrokenJson
            self._open.append(character)
            self._state = "first_key" if character == "{" else "first_value"
        elif character == '"':
            self._state, self._is_key = "string", False
        elif character == "-" or character in _DIGITS:
            self._state = "number"
            self._number = {"-": "-", "0": "zero"}.get(character, "integer")
        elif word := {"t": "true", "f": "false", "n": "null"}.get(character):
            self._state, self._left = "literal", word[1:]
        else:
            raise BrokenJson

    def _after_value(self) -> None:
        self._state = "after" if self._open else "end"
