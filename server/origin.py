"""Refuse requests with a foreign `Host` (DNS rebinding) or a foreign `Origin`.

A browser lets any page send `multipart/form-data` and `text/plain` to any address. Without API keys only these two
headers tell such a request from one of the server's own page.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from waver.server.errors import APIError

PROBES = frozenset({"/health", "/ready"})
"""Answered whatever the headers: a load balancer's probe names no host that means anything, and they change nothing."""
DEFAULT_PORTS = (80, 443)


class OriginMiddleware:
    """Middleware that answers 403 to requests whose `Host` or `Origin` is not allowed.

    Used only without API keys: with keys, a foreign page has none to send.
    """

    def __init__(
        self,
        app: ASGIApp,
        bound: str,
        allowed_hosts: Sequence[str],
        allowed_origins: Sequence[str],
        origin_pattern: str,
    ) -> None:
        """Set what is allowed.

        Args:
            bound: the address that the server listens on.
            allowed_hosts: names that `Host` may have besides, `*.example.org` for all below one, `*` for any.
            allowed_origins, origin_pattern: origins of pages that may call, as for CORS.
        """
        self.app = app
        self._bound = bound.lower()
        self._hosts = [name.lower().rstrip(".") for name in allowed_hosts]
        self._origins = allowed_origins
        self._pattern = re.compile(origin_pattern)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._serves(place(host)[0]):
            message = (
                f"This server does not answer to the host '{host[:80]}'; server.allowed_hosts names those it does."
            )
            error = APIError(403, message, code="host_not_allowed")
            return await error.response()(scope, receive, send)
        if origin is not None and not self._welcome(origin, host or ""):
            message = f"Pages of '{origin[:80]}' may not call this server; add them to server.cors_origins."
            error = APIError(403, message, code="origin_not_allowed")
            return await error.response()(scope, receive, send)
        return await self.app(scope, receive, send)

    def _serves(self, name: str) -> bool:
        """Return whether a host name is allowed. Addresses cannot be rebound; they are refused only on loopback."""
        if not name:
            return False
        if self._listed(name) or "*" in self._hosts:
            return True
        if name == "localhost" or name.endswith(".localhost") or name == self._bound:
            return True
        address = _address(name)
        return address is not None and (address.is_loopback or not _loopback(self._bound))

    def _listed(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._hosts if pattern != "*")

    def _welcome(self, origin: str, host: str) -> bool:
        """Return whether an origin is allowed: the server's own, this machine's, or a configured one."""
        if "*" in self._origins or origin in self._origins or self._pattern.fullmatch(origin):
            return True
        _, separator, authority = origin.partition("://")
        # A proxy that ends TLS may change the scheme and `Host`, so the scheme is not compared.
        return bool(separator) and (place(authority) == place(host) or self._listed(place(authority)[0]))


def place(authority: str) -> tuple[str, int | None]:
    """Split `name:port` into the name in lower case and the port, None for a default port. The name is empty if
    malformed."""
    if re.search(r"[/@\\?#\s]", authority):
        return "", None
    try:
        parts = urlsplit(f"//{authority}")
        port = parts.port
    except ValueError:
        return "", None
    return (parts.hostname or "").rstrip("."), None if port in DEFAULT_PORTS else port


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _loopback(bound: str) -> bool:
    address = _address(bound)
    return bound == "localhost" or (address is not None and address.is_loopback)
