"""Resolve a request's address before anything else reads it: absolute request targets, a proxy's prefix, and the ways
in which base URLs are put together wrongly (`/v1/v1/…`, `//v1/…`, a missing `/v1`, a trailing slash)."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import quote

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
VERBATIM = re.compile(r"/static/|/v1/collections/[^/]+/documents/.")
"""Paths that end in a name which may hold any characters: a file's, or a document's id."""


class AddressMiddleware:
    """Outermost middleware: rewrites the path to the one that the routes have.

    Args:
        prefix: the path under which a proxy serves this server, such as `/waver`; removed where a request has it.
        names: first segments of paths below `/v1` that are served without it, too.
    """

    def __init__(self, app: ASGIApp, prefix: str, names: Collection[str]) -> None:
        self.app = app
        self._prefix, self._names = prefix, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given: str = scope["path"]
        path, authority = relative(given)
        if authority is not None:  # it goes over the header (RFC 9112, section 3.2.2)
            rest = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope = {**scope, "headers": [(b"host", authority.encode()), *rest]}
        if self._prefix and path == self._prefix:  # the page's links are relative to the folder
            return await RedirectResponse(f"{self._prefix}/")(scope, receive, send)
        if path.startswith(f"{self._prefix}/"):
            path = path[len(self._prefix) :]
        path = canonical(path, self._names)
        if path != given:
            scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        return await self.app(scope, receive, send)


class PrefixMiddleware:
    """Innermost middleware: puts the prefix in front of the path again, as the router and its links want it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._prefix:
            return await self.app(scope, receive, send)
        inner = {**scope, "root_path": self._prefix, "path": self._prefix + scope["path"]}
        try:
            return await self.app(inner, receive, send)
        finally:
            scope["route"] = inner.get("route")


def relative(target: str) -> tuple[str, str | None]:
    """Split a request target in absolute form into the path and the authority; the latter is None in origin form."""
    found = ABSOLUTE.match(target)
    return (target[found.end() :] or "/", found[1]) if found else (target, None)


def canonical(path: str, names: Collection[str]) -> str:
    """Return the path that is meant: with single slashes, one `/v1` in front of the API's `names`, and no slash at the
    end."""
    path = "/" + path.lstrip("/")
    if not VERBATIM.match(path):
        path = re.sub(r"/{2,}", "/", path)
        path = path.rstrip("/") or "/"
    while path.startswith("/v1/v1/"):
        path = path[len("/v1") :]
    return f"/v1{path}" if path.split("/")[1] in names else path
