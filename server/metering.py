"""Count each request against its key's budgets, and tell what is left of them, in one middleware for all routes."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waver.server.auth import ANTHROPIC, is_open
from waver.server.errors import APIError
from waver.server.messages_output import error_body
from waver.server.sse import dump
from waver.server.tenants.budget import headers
from waver.server.tenants.grant import current
from waver.server.tenants.meter import Meter, set_hold


class MeterMiddleware:
    """Middleware that lets a request in if its key has room for it, and settles it when it has ended. A request that is
    refused or fails before any work was done does not count."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self.app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            return await self.app(scope, receive, send)
        try:
            hold = await self._meter.begin(current())
        except APIError as error:
            if not scope["path"].startswith(ANTHROPIC):
                raise
            answer = Response(dump(error_body(error)), error.status, error.headers, "application/json")
            return await answer(scope, receive, send)
        if hold is None:
            return await self.app(scope, receive, send)
        hold.failed = True  # until there is an answer

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                hold.failed = message["status"] >= 400
                given = MutableHeaders(scope=message)
                for name, value in headers(hold.state).items():
                    given.setdefault(name, value)
            await send(message)

        set_hold(hold)
        try:
            return await self.app(scope, receive, told)
        finally:
            hold.let_go()
