"""Worker script that parses large JSON bodies for `waver.server.bodies`. Long strings are returned apart from the
structure."""

from __future__ import annotations

import json
import sys
from typing import Any

from waver.isolation import serve

LONG = 128
"""Characters from which a string travels beside the structure, as bytes that need not be parsed again."""
LONGEST_KEY = 1024
MOST_KEYS = 8192
"""Keys of one object: all of them are looked at on the event loop."""
LARGEST_STRUCTURE = 8 * 2**20
"""Bytes of the structure, which the server has to parse again."""
GZIP = b"\x1f\x8b"
COMPRESSED = "The body is compressed with gzip, which is not read: send it as it is."
REFERENCE = "\ue000long"
"""The key of the object that stands for a long string: its place in the list of lengths."""


def handle(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Parse a JSON body of at most `most` values. Return the `lengths` in bytes of its long strings and the length of
    the `structure`; the data is the structure followed by these strings in UTF-8. For invalid JSON return `error` and
    `position`, for what is no text or beyond the parser's bounds `unreadable`: a sentence."""
    if data.startswith(GZIP):
        return {"unreadable": COMPRESSED}, b""
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        return {"error": error.msg, "position": error.pos}, b""
    except (ValueError, RecursionError) as error:
        return {"unreadable": unreadable(error)}, b""
    strings: list[bytes] = []
    left = request["most"]

    def shortened(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > request["depth"]:
            raise OverflowError
        if isinstance(value, str) and len(value) > LONG:
            strings.append(value.encode("utf-8", "surrogatepass"))
            return {REFERENCE: len(strings) - 1}
        if isinstance(value, list):
            return [shortened(each, depth + 1) for each in value]
        if isinstance(value, dict):
            if REFERENCE in value or len(value) > MOST_KEYS or any(len(key) > LONGEST_KEY for key in value):
                raise OverflowError
            return {key: shortened(each, depth + 1) for key, each in value.items()}
        return value

    try:
        structure = json.dumps(shortened(value, 0), ensure_ascii=False).encode("utf-8", "surrogatepass")
    except OverflowError:
        return {"large": True}, b""
    if len(structure) > LARGEST_STRUCTURE:
        return {"large": True}, b""
    return {"structure": len(structure), "lengths": [len(each) for each in strings]}, b"".join((structure, *strings))


def unreadable(error: Exception) -> str:
    """Return a sentence that says why a parser could not begin with a body, or had to give up."""
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"The body is not text in UTF-8: the byte 0x{byte:02x} at position {error.start} cannot be part of it."
    if isinstance(error, RecursionError):
        return "The body is not readable JSON: its arrays and objects are nested too deeply."
    return f"The body is not readable JSON: it holds a whole number of more than {sys.get_int_max_str_digits()} digits."


if __name__ == "__main__":
    serve(handle)
