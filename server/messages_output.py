"""Turn a chat's answer into Anthropic's message objects and the events of their stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from waver.server.errors import APIError
from waver.server.translation import Event, new_id

REASONS = {
    "stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal",
}  # fmt: skip
ERRORS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""Types of errors by status; others are `invalid_request_error` below 500, else `api_error`."""


class MessageTranslation:
    """Builds one message."""

    def __init__(self, model: str) -> None:
        self._message = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": list[Any](),
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._number = -1
        """The number of the block that is being written."""
        self._open: str | None = None
        self._calls: set[int] = set()
        self._ending: dict[str, Any] = {}
        self._trace: list[Any] = []

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        message, blocks = choice["message"], []
        if thought := message.get("reasoning_content"):
            blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
        if message.get("content") or not (thought or message.get("tool_calls")):
            blocks.append({"type": "text", "text": message["content"] or ""})
        for call in message.get("tool_calls") or ():
            function = call["function"]
            given = loaded(function["arguments"])
            blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": given})
        return {
            **self._message,
            "content": blocks,
            **ending(choice),
            "usage": usage(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]),
            "waver": answer["waver"],
        }

    def opening(self, prompt_tokens: int) -> Iterator[Event]:
        yield {"type": "message_start", "message": {**self._message, "usage": usage(prompt_tokens, 0)}}

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        for choice in chunk["choices"]:
            yield from self._delta(choice["delta"])
            self._trace += (choice.get("waver") or {}).get("trace", [])
            if choice.get("finish_reason"):
                if self._number < 0:
                    yield from self._begin("text", {"type": "text", "text": ""})
                yield from self._end()
                self._ending = ending(choice)
        if not chunk["choices"] and (counts := chunk.get("usage")):
            report = {**chunk["waver"], **({"trace": self._trace} if self._trace else {})}
            spent = usage(counts["prompt_tokens"], counts["completion_tokens"])
            yield {"type": "message_delta", "delta": self._ending, "usage": spent, "waver": report}
            yield {"type": "message_stop"}

    def failure(self, error: Mapping[str, Any]) -> Iterator[Event]:
        kind = {"rate_limit_error": "rate_limit_error", "timeout_error": "timeout_error"}.get(
            error["type"], "api_error"
        )
        yield {"type": "error", "error": {"type": kind, "message": error["message"]}}

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[Event]:
        if thought := delta.get("reasoning_content"):
            yield from self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._add({"type": "thinking_delta", "thinking": thought})
        if text := delta.get("content"):
            yield from self._begin("text", {"type": "text", "text": ""})
            yield self._add({"type": "text_delta", "text": text})
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if call["index"] not in self._calls:
                self._calls.add(call["index"])
                block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
                yield from self._begin(f"call {call['index']}", block)
            if arguments := function.get("arguments"):
                yield self._add({"type": "input_json_delta", "partial_json": arguments})

    def _begin(self, kind: str, block: dict[str, Any]) -> Iterator[Event]:
        """Open a block, unless one of its kind is open."""
        if self._open == kind:
            return
        yield from self._end()
        self._open, self._number = kind, self._number + 1
        yield {"type": "content_block_start", "index": self._number, "content_block": block}

    def _end(self) -> Iterator[Event]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._number}

    def _add(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._number, "delta": delta}


def ending(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return why a message ended."""
    stop = choice.get("stop_reason")
    if choice["finish_reason"] == "stop" and isinstance(stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": REASONS[choice["finish_reason"]], "stop_sequence": None}


def usage(read: int, written: int) -> dict[str, int]:
    """Return the counts of tokens."""
    return {
        "input_tokens": read,
        "output_tokens": written,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


def loaded(arguments: str) -> Any:
    """Return the arguments of a call as an object; what is none, as where the answer was cut, under a name of its
    own."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"unparsed": arguments}


class AnthropicError(BaseModel):
    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """Body of a response that is not a success, as Anthropic's API has it."""

    type: Literal["error"]
    error: AnthropicError


REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicErrorBody, "description": "The request cannot be answered."},
    "5XX": {"model": AnthropicErrorBody, "description": "The server cannot answer now, or failed."},
}


def error_body(error: APIError) -> dict[str, Any]:
    """Return an error as Anthropic's API has it."""
    kind = ERRORS.get(error.status) or ("invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
