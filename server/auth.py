"""API keys: the one place where a request is let in."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from waver.server.errors import APIError

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FILES = "/static/"


def is_open(path: str) -> bool:
    """Whether a path needs no key: probes and the page's files. All others do, also those that do not exist."""
    return path in OPEN_PATHS or path.startswith(OPEN_FILES)


def keys_from_environment(variable: str) -> list[str]:
    """The keys in a variable of the environment, separated by commas."""
    return [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]


class AuthMiddleware:
    """Lets requests pass that carry `Authorization: Bearer KEY` with one of the keys; without keys, everybody."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._digests or is_open(scope["path"]) or self._admits(scope["headers"]):
            return await self.app(scope, receive, send)
        error = APIError(
            401,
            "A valid API key is needed, as the header 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        return await error.response()(scope, receive, send)

    def _admits(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # Digests have one length, and every key is compared: the time says nothing about any of them.
        digest = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)
