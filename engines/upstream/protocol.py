"""Decode what an upstream sends: events of a stream, JSON objects and refusals, as data or as exceptions."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from waver.engines.base import EngineBusy, EngineError, Unsupported, in_full

UNAVAILABLE = frozenset({502, 503})
"""Statuses of a proxy whose server is down, or of a server that is starting."""
TOO_MANY = 429
FIELD = re.compile(r"[a-z][a-z_]{0,39}")
"""A name of a request's field, which may be passed on."""
CHAT = "chat.completion.chunk"
"""The kind of event in which a conversation is answered; of these, the usage counts as a choice of its own."""
LONGEST_LINE = 1 << 22
"""Most bytes of one event."""
LONGEST_COMPLAINT = 1 << 16
"""Most bytes that are read of an error response."""


class Retryable(Exception):
    """A failure worth another try, after so many seconds at least; `error` is raised if there is none. `unavailable`:
    the upstream is down."""

    def __init__(self, error: EngineError, seconds: float = 0.0, unavailable: bool = True) -> None:
        super().__init__(in_full(error))
        self.error, self.seconds, self.unavailable = error, seconds, unavailable


class Protocol:
    """Decodes what one upstream sends. `who` names it in errors, `secrets` are removed from them."""

    def __init__(self, who: str, secrets: Sequence[str] = ()) -> None:
        self.who = who
        self._secrets = secrets

    def event(self, line: bytes) -> list[dict[str, Any]] | None:
        """Decode the choices in a line of a stream; None at its end. A chat has its usage, `{"usage": …}`, among them.

        Raises:
            EngineError: it is no server-sent event, or one that reports an error.
        """
        field, _, value = line.partition(b":")
        if field != b"data":
            if field in (b"", b"event", b"id", b"retry"):
                return []
            raise EngineError(f"{self.who} sent something that is not a server-sent event")
        if value.strip() == b"[DONE]":
            return None
        event = self.object(value)
        if event.get("error") or event.get("object") == "error":
            raise EngineError(f"{self.who} failed", self._complaint(event)[0])
        choices = event.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise EngineError(f"{self.who} sent an event without choices")
        content = ("text", "logprobs", "waver", "finish_reason")
        found = [choice for choice in choices if any(choice.get(key) for key in content)]
        if event.get("object") == CHAT and isinstance(usage := event.get("usage"), dict):
            found.append({"usage": usage})
        return found

    def object(self, content: bytes) -> dict[str, Any]:
        """Decode a JSON object.

        Raises:
            EngineError: it is none.
        """
        data = _parsed(content)
        if not isinstance(data, dict):
            raise EngineError(f"{self.who} sent something that is not a JSON object")
        return data

    def failure(self, response: httpx.Response, content: bytes) -> Exception:
        """Make the exception for a response that is not a success."""
        status = response.status_code
        if status in (401, 403):  # what it says may quote a part of the key
            return EngineError(f"{self.who} does not accept the key (status {status})")
        data = _parsed(content)
        message, param = self._complaint(data if isinstance(data, dict) else {})
        if status in (400, 413, 422):
            return Unsupported(f"{self.who} refuses the request; its reason is in the server's log", param, message)
        seconds = _retry_after(response.headers.get("retry-after"))
        if status == TOO_MANY:
            return Retryable(EngineBusy(f"{self.who} is busy", message, seconds), seconds, unavailable=False)
        error = EngineError(f"{self.who} answered with status {status}", message)
        return Retryable(error, seconds) if status in UNAVAILABLE else error

    def _complaint(self, data: dict[str, Any]) -> tuple[str, str | None]:
        """Extract an upstream's error message, and the name of the field that it complains about."""
        inner = data.get("error") or data
        inner = inner if isinstance(inner, dict) else {"message": inner}
        message, param = inner.get("message") or data.get("detail"), inner.get("param")
        text = " ".join(str(message or "it gives no reason").split())
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text[:300], param if isinstance(param, str) and FIELD.fullmatch(param) else None


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


async def lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Split a stream into the lines of server-sent events. (httpx would also split at U+2028, which JSON may
    contain.)"""
    rest = b""
    async for part in response.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise EngineError(f"an upstream sent a line of more than {LONGEST_LINE} bytes", str(response.url.host))
        for line in whole:
            yield line.rstrip(b"\r")
    if rest:
        yield rest


async def beginning(response: httpx.Response) -> bytes:
    """Read an error response, as far as it is of interest."""
    content = b""
    async for part in response.aiter_bytes():
        content += part
        if len(content) > LONGEST_COMPLAINT:
            break
    return content


def _retry_after(value: str | None) -> float:
    """Parse the seconds that an upstream asks to wait; 0 where it does not."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):  # the latter for a time without its zone
        return 0.0
