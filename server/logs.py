"""Log one line for each request, with the request id that is also a header of its response."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waver.server.log_text import TextRenderer, wants_colour
from waver.server.turns import QUIET
from waver.tracing import NOTHING, Span

if TYPE_CHECKING:
    from waver.server.runtime import Runtime

log = structlog.get_logger("waver")

SPAN_FIELDS = {"gen_ai.request.model": "model", "waver.policy": "policy", "waver.key": "key", "error.type": "error"}
"""Attributes of a request's span that are taken from its line in the log."""
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def configure_logs(level: int = logging.INFO, form: Literal["auto", "text", "json"] = "auto") -> None:
    """Log to standard error, lines for people or lines of JSON; `auto` is for people where it is a terminal."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    last: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    if text:
        last.append(TextRenderer(colour=sys.stderr.isatty() and wants_colour()))
    else:
        last = [structlog.processors.TimeStamper(fmt="iso"), *last, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


class LogMiddleware:
    """Outermost middleware: gives each request an id, measures it and logs one line, with the name of its key as `key`.
    Bodies are not logged, nor keys themselves.

    Handlers add to the line through the dictionary `scope["log"]`.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime, self._metrics = runtime, runtime.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        line: dict[str, object] = {"method": scope["method"], "path": scope["path"][:200], "status": 499}
        scope["log"], scope["waver.request_id"] = line, request_id
        began = time.perf_counter()

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id), self._span(scope, request_id) as span:
            try:
                await self.app(scope, receive, stamped)
            finally:
                seconds = time.perf_counter() - began
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.requests.labels(route, str(line["status"])).inc()
                self._metrics.seconds.labels(route).observe(seconds)
                span.note("http.route", route)
                span.note("http.response.status_code", int(str(line["status"])))
                for name, field in SPAN_FIELDS.items():
                    if line.get(field) is not None:
                        span.note(name, str(line[field]))
                if (key := line.get("key")) is not None:
                    self._metrics.key_requests.labels(self._metrics.key_label(str(key)), str(line["status"])).inc()
                if scope["path"] not in QUIET:
                    log.info("request", **line, seconds=round(seconds, 4))

    def _span(self, scope: Scope, request_id: str) -> AbstractContextManager[Span]:
        """Begin the span of a request, if somebody listens."""
        traces = self._runtime.traces
        if traces is None or scope["path"] in QUIET:
            return nullcontext(NOTHING)
        attributes = {"http.request.method": scope["method"], "waver.request_id": request_id}
        return traces.request(Headers(scope=scope), f"{scope['method']} {scope['path'][:200]}", attributes)
