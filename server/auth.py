"""Check API keys, in one middleware for all routes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from waver.server.errors import APIError
from waver.server.keys import ApiKey

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FILES = "/static/"
ANTHROPIC = "/v1/messages"
SCOPE_KEY = "waver.key"
"""Entry of the ASGI scope that holds the name of the request's key."""


def is_open(path: str) -> bool:
    """Return whether a path needs no key: health checks and the page's files. All other paths need one, also those that
    do not exist."""
    return path in OPEN_PATHS or path.startswith(OPEN_FILES)


class AuthMiddleware:
    """Let requests pass that carry one of the keys, as `Authorization: Bearer KEY` or, to
    Anthropic's endpoints, `x-api-key: KEY`; without keys, everybody."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self.app = app
        self._digests = [(hashlib.sha256(key.secret.encode()).digest(), key.name) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._digests:
            return await self.app(scope, receive, send)
        bare = scope["path"].startswith(ANTHROPIC)
        scope[SCOPE_KEY] = name = self._holder(scope["headers"], bare)
        if name is not None and "log" in scope:
            scope["log"]["key"] = name
        if name is not None or is_open(scope["path"]):
            return await self.app(scope, receive, send)
        error = APIError(
            401,
            "A valid API key is needed, as the header 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        return await error.response()(scope, receive, send)

    def _holder(self, headers: Sequence[tuple[bytes, bytes]], bare: bool = False) -> str | None:
        """Return the name of the key that a request carries; None if it carries no valid one. `bare`: it may stand in
        `x-api-key`."""
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        alone = [value for name, value in headers if name == b"x-api-key"] if bare and not given else []
        if len(alone) == 1:
            scheme, key = b"bearer", alone[0]
        # Digests have one length, and every key is compared: the time says nothing about any of them.
        digest = hashlib.sha256(key.strip()).digest()
        matches = [name for known, name in self._digests if hmac.compare_digest(digest, known)]
        return matches[0] if matches and scheme.lower() == b"bearer" else None
