"""Read multipart forms, also where a file's name is given as `filename*` alone (RFC 8187), as some clients send it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from waver.server.errors import invalid

_EXTENDED = re.compile(rb"[;\s]filename\*\s*+=\s*+\"?+([A-Za-z0-9-]{1,20})'[^'\";]{0,20}'([^\s;\"]++)", re.I)
_PLAIN = re.compile(rb"[;\s]filename\s*+=", re.I)
CHARSETS = frozenset({b"utf-8", b"iso-8859-1"})


PIECE = 8192
"""Bytes that are parsed at a time: in the worst case, every fourth byte of a form is a call of the parser."""


class Parser(MultiPartParser):
    """Starlette's parser, which leaves `filename*` out."""

    def on_headers_finished(self) -> None:
        part = self._current_part
        if part.content_disposition is not None:
            part.content_disposition = with_plain_name(part.content_disposition)
        super().on_headers_finished()


def with_plain_name(header: bytes) -> bytes:
    """Return a Content-Disposition with `filename="…"` if it has `filename*=…` alone."""
    found = _EXTENDED.search(header)
    if found is None or found[1].lower() not in CHARSETS or _PLAIN.search(header):
        return header
    name = unquote_to_bytes(found[2]).decode(found[1].decode(), "replace").encode()
    return header + b'; filename="' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


async def form(request: Request, max_files: int, max_fields: int) -> FormData:
    """Read a request's form; close it when its files have been read.

    Raises:
        APIError: 400, it is none, or has too many parts.
    """
    try:
        async with aclosing(_pieces(request)) as stream:
            return await Parser(request.headers, stream, max_files=max_files, max_fields=max_fields).parse()
    except MultiPartException as error:
        raise invalid(f"The form cannot be read: {error.message}") from error


async def _pieces(request: Request) -> AsyncGenerator[bytes, None]:
    """Yield the body in pieces, and let others go on in between."""
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            for start in range(0, len(chunk), PIECE):
                yield chunk[start : start + PIECE]
                await asyncio.sleep(0)
