"""Check API keys, in one middleware for all routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from waver.engines.salt import set_salt
from waver.server.errors import APIError
from waver.server.tenants.grant import EVERYBODY, Identity, act_as
from waver.server.tenants.key_ring import KeyRing
from waver.server.tenants.meter import cache_salt

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FILES = "/static/"
ANTHROPIC = "/v1/messages"
ADMIN = "/v1/admin"
METRICS = frozenset({"/metrics", "/v1/dashboard"})
"""Figures of all keys."""
MONITORED = METRICS | {"/version"}
"""All that a key with the role `monitor` may ask for."""
SCOPE_KEY = "waver.key"
"""Entry of the ASGI scope that holds the name of the request's key."""


def is_open(path: str) -> bool:
    """Return whether a path needs no key: health checks and the page's files. All other paths need one, also those that
    do not exist."""
    return path in OPEN_PATHS or path.startswith(OPEN_FILES)


class AuthMiddleware:
    """Let requests pass that carry one of the keys, as `Authorization: Bearer KEY` or, to
    Anthropic's endpoints, `x-api-key: KEY`, to the routes that the key's role is for; without keys, everybody.

    Args:
        unasked: makes the application that stands in front where there are no keys.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, unasked: Callable[[ASGIApp], ASGIApp]) -> None:
        self.app = app
        self._ring = ring
        self._unasked = unasked(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not self._ring.asks:
            act_as(EVERYBODY)
            return await self._unasked(scope, receive, send)
        bare = scope["path"].startswith(ANTHROPIC)
        who = await self.identify(scope["headers"], bare)
        scope[SCOPE_KEY] = None if who is None else who.name
        if who is not None and "log" in scope:
            scope["log"]["key"] = who.name
        error = refusal(who, scope["path"])
        if error is not None:
            return await error.response()(scope, receive, send)
        act_as(who or NOBODY)
        set_salt(cache_salt(None if who is None else who.name))
        return await self.app(scope, receive, send)

    async def identify(self, headers: Sequence[tuple[bytes, bytes]], bare: bool = False) -> Identity | None:
        """Return the holder of the key that a request carries; None if it carries no valid one. `bare`: it may stand in
        `x-api-key`."""
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        alone = [value for name, value in headers if name == b"x-api-key"] if bare and not given else []
        if len(alone) == 1:
            scheme, key = b"bearer", alone[0]
        who = await self._ring.identify(key.strip())
        return who if scheme.lower() == b"bearer" else None


NOBODY = Identity(None, EVERYBODY.grant.model_copy(update={"role": "monitor"}), "stored")
"""The sender of a request without a key, for what is open to all."""


def refusal(who: Identity | None, path: str) -> APIError | None:
    """Return why somebody may not ask for a path; None if they may."""
    if is_open(path):
        return None
    if who is None:
        return APIError(
            401,
            "A valid API key is needed, as the header 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    allowed = who.admin or (
        path in MONITORED
        if who.grant.role == "monitor"
        else not path.startswith(ADMIN) and (path not in METRICS or who.kind == "plain")
    )
    if allowed:
        return None
    wanted = "an admin key, or one with the role 'monitor'" if path in METRICS else "an admin key"
    if who.grant.role == "monitor":
        wanted = "a key with another role than 'monitor'"
    return APIError(403, f"This needs {wanted}.", code="permission_denied")
