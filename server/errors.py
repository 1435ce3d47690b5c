"""Turn failures into OpenAI error objects: one exception, one JSON format, and a mapping from every failure to it."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waver.engines.base import ContextExceeded, EngineBusy, EngineError, Unsupported, in_full
from waver.policies.registry import PolicyError
from waver.retrieval.base import (
    Busy,
    Damaged,
    Exists,
    NoCollection,
    NoSpace,
    RetrievalError,
    StorageError,
    TooLarge,
    Unavailable,
    Unreachable,
)
from waver.server.disconnect import CLIENT_GONE, ClientGone
from waver.server.tenants.database import DatabaseError
from waver.server.validation import explain

log = structlog.get_logger("waver")

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.@+-]+/)+")
"""The folders of an absolute path: where something is installed is for the log."""
NO_RETRY = {"x-should-retry": "false"}


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every response that is not a success."""

    error: ErrorObject


class APIError(HTTPException):
    """A failure with its HTTP status; `message` is one or two sentences for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.message = message
        self.param = param
        self.code = code
        self.headers: dict[str, str] = dict(headers or {})

    @property
    def status(self) -> int:
        return self.status_code

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        # Plain ASCII: what a client sent may be quoted, and not all of it can be encoded.
        content = json.dumps(self.body, ensure_ascii=True)
        return Response(content, self.status, self.headers, media_type="application/json")


class ReloadRefused(APIError):
    """A configuration that is not taken over: 409, with each option and the reason in `refused`."""

    def __init__(self, reasons: Sequence[tuple[str | None, str]]) -> None:
        message = " ".join(reason for _, reason in reasons)
        super().__init__(409, message, param=reasons[0][0], code="reload_refused")
        self._reasons = reasons

    @property
    def body(self) -> dict[str, Any]:
        return super().body | {"refused": [{"option": name, "reason": reason} for name, reason in self._reasons]}


def invalid(message: str, param: str | None = None, code: str | None = None) -> APIError:
    """Return a 400: the request is invalid."""
    return APIError(400, message, param=param, code=code)


def not_ready(message: str, seconds: int = 5) -> APIError:
    """Return a 503: the server cannot answer yet, and the client should retry."""
    return APIError(503, message, code="not_ready", headers={"retry-after": str(seconds)})


def server_stopping() -> APIError:
    """Return a 503: the server is stopping, and the grace period for running requests is over."""
    message = "The server is stopping; the answer was not finished."
    return APIError(503, message, code="server_stopping", headers={"retry-after": "5"})


def from_exception(error: BaseException, work_spent: bool = False) -> APIError:
    """Convert any failure to an `APIError`. Internals go to the log only. `work_spent`: tell the client not to retry by
    itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case APIError():
            answer = error
        case Unsupported() | PolicyError():
            code = "context_length_exceeded" if isinstance(error, ContextExceeded) else None
            answer = invalid(str(error), error.param, code)
            if isinstance(error, Unsupported) and error.detail:
                log.warning("an engine refuses a request", reason=in_full(error))
        case EngineBusy():
            log.warning("an engine is busy", reason=in_full(error))
            seconds = str(max(math.ceil(error.retry_after), 1))
            answer = APIError(429, str(error), code="engine_busy", headers={"retry-after": seconds})
        case EngineError():
            log.warning("an engine cannot serve a request", reason=in_full(error))
            answer = APIError(503, str(error), code="engine_unavailable", headers={"retry-after": "5"})
        case RetrievalError() | DatabaseError():
            answer = from_store(error)
        case TimeoutError() | asyncio.TimeoutError():
            answer = APIError(504, "The request's deadline passed.", code="timeout", headers=NO_RETRY)
        case RequestValidationError():
            message, param = explain(error.errors(), error.body)
            answer = invalid(message, param)
        case HTTPException():
            answer = APIError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            log.error("unexpected failure", exc_info=error)
            answer = APIError(500, "The server failed at something unexpected.", code="internal_error")
    if work_spent:
        answer.headers |= NO_RETRY
    return answer


def from_store(error: RetrievalError | DatabaseError) -> APIError:
    """Convert a failure of retrieval, or of the database of keys, to an `APIError` with its status."""
    message = str(error)
    match error:
        case DatabaseError():
            log.error("the database of keys cannot be used", reason=message, exc_info=error.__cause__)
            return APIError(503, message, code="keys_unavailable", headers={"retry-after": "5"})
        case NoCollection():
            return APIError(404, message, param="collection", code="collection_not_found")
        case Exists():
            return APIError(409, message, param="name", code="collection_exists", headers=NO_RETRY)
        case TooLarge():
            return APIError(413, message, code="document_too_large")
        case Unavailable():
            return APIError(501, FOLDERS.sub("", message), code="retrieval_unavailable", headers=NO_RETRY)
        case Unreachable():
            return APIError(503, message, code="retrieval_unreachable", headers={"retry-after": "5"})
        case Busy():
            return APIError(503, message, code="collection_busy", headers={"retry-after": "5"})
        case NoSpace():
            log.warning("documents cannot be stored: the disk is full", reason=message)
            return APIError(507, message, code="storage_full", headers=NO_RETRY)
        case StorageError():
            log.warning("a collection cannot be read or written", reason=message, exc_info=error.__cause__)
            return APIError(500, message, code="storage_failed", headers=NO_RETRY)
        case Damaged():
            log.error("a collection is damaged", reason=message)
            return APIError(503, message, code="collection_damaged", headers=NO_RETRY)
        case _:
            return invalid(message)


class ErrorsMiddleware:
    """Innermost middleware: an unexpected exception becomes a 500, inside of CORS and logging, and a request that is
    cancelled because the server stops becomes a 503.

    Args:
        stopping: whether it does.
    """

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool]) -> None:
        self.app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except asyncio.CancelledError:
            if started or not self._stopping():
                raise
            await server_stopping().response()(scope, receive, send)
        except Exception as error:
            answer = from_exception(error)
            if started:
                raise
            await answer.response()(scope, receive, send)


def install_handlers(app: FastAPI) -> None:
    """Answer every error of the router, of validation and of ours with an OpenAI error object."""

    async def handle(request: Request, error: Exception) -> Response:
        answer = from_exception(error)
        if answer.status == 404 and answer.code is None:
            answer.message = f"There is nothing at {request.method} {request.url.path}."
            answer.code = "not_found"
        elif answer.status == 405:
            answer.message = f"{request.url.path} does not take {request.method}."
            answer.code = "method_not_allowed"
        return answer.response()

    async def nobody(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ClientGone, nobody)
    for kind in (RequestValidationError, HTTPException, Unsupported, PolicyError, EngineError, RetrievalError):
        app.add_exception_handler(kind, handle)
