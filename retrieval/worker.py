"""Worker script that extracts documents for `waver.retrieval.parsing`: bytes in, title and text out."""

from __future__ import annotations

from typing import Any

from waver.isolation import serve
from waver.retrieval.base import BadDocument, TooLarge
from waver.retrieval.formats import READERS, clean


def handle(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Extract a document of format `kind`, of at most `most` bytes of text. Return its `title`, and its text in UTF-8
    as data; on failure return `error`, the exception's name, and its `message`."""
    try:
        title, found = READERS[request["kind"]](data, request["most"])
        text = clean(found).encode("utf-8", "replace")
        if len(text) > request["most"]:
            raise TooLarge(f"its text is larger than {request['most']} bytes")
    except (BadDocument, TooLarge) as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    return {"title": clean(title)[:500]}, text


if __name__ == "__main__":
    serve(handle)
