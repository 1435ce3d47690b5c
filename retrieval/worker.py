"""The script that reads documents for `waver.retrieval.parsing`: bytes in; title, text and what belongs to them out."""

from __future__ import annotations

from typing import Any

from waver.isolation import serve
from waver.retrieval.base import BadDocument, TooLarge
from waver.retrieval.formats import READERS, clean


def handle(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Read a document of the kind `kind`, of at most `most` bytes of text, which its
    sender said to be in `charset`: its `title`, `metadata` and `warnings`, and
    its text in UTF-8. Where it cannot be read: `error`, which is the exception's name, and its `message`."""
    try:
        found = READERS[request["kind"]](data, request["most"], request["charset"])
        text = clean(found.text).encode("utf-8", "replace")
        if len(text) > request["most"]:
            raise TooLarge(f"its text is larger than {request['most']} bytes")
    except (BadDocument, TooLarge) as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    return {
        "title": clean(found.title).strip()[:500],
        "metadata": dict(found.metadata),
        "warnings": list(found.warnings),
    }, text


if __name__ == "__main__":
    serve(handle)
