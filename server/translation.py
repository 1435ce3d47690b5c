"""Serve other protocols on top of chat: a request becomes a chat request, and what chat answers is translated back.

`waver.server.responses` and `waver.server.messages` have a `Translation` each.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pydantic import ValidationError

from waver.server.chat_schemas import ChatRequest
from waver.server.errors import APIError, invalid
from waver.server.validation import explain

Event = dict[str, Any]


class Translation(Protocol):
    """Turns a chat's answer into another protocol's: a whole one, or event by event."""

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Translate a chat completion."""

    def opening(self, prompt_tokens: int) -> Iterable[Event]:
        """Return the events before the first token."""

    def chunk(self, chunk: Mapping[str, Any]) -> Iterable[Event]:
        """Translate a chunk of a chat's stream, of which the last has the usage and no choices."""

    def failure(self, error: Mapping[str, Any]) -> Iterable[Event]:
        """Translate an error object in a stream that has begun."""


async def translated(
    chunks: AsyncGenerator[Sequence[Mapping[str, Any]], None], into: Translation, prompt_tokens: int
) -> AsyncGenerator[list[Event], None]:
    """Translate a chat's stream."""
    try:
        yield list(into.opening(prompt_tokens))
        async for batch in chunks:
            events: list[Event] = []
            for chunk in batch:
                events += into.failure(chunk["error"]) if chunk.get("error") else into.chunk(chunk)
            if events:
                yield events
    finally:
        await chunks.aclose()


class Conversation:
    """The messages of a chat request, each with the place in the original that it was made of (`input[3]`).

    Args:
        field: the original's field of the messages. names: its names of chat's other fields.
    """

    def __init__(self, field: str, names: Mapping[str, str]) -> None:
        self.field = field
        self._names = names
        self.messages: list[dict[str, Any]] = []
        self._places: list[str] = []

    def add(self, place: str, role: str, **fields: Any) -> dict[str, Any]:
        """Append a message, and return it."""
        self.messages.append({"role": role, **fields})
        self._places.append(place)
        return self.messages[-1]

    @property
    def last(self) -> dict[str, Any]:
        return self.messages[-1] if self.messages else {}

    def request(self, own: Mapping[str, Any], extra: Mapping[str, Any]) -> ChatRequest:
        """Make the chat request with these messages, of the fields that were translated and of those that go to chat
        as they are.

        Raises:
            APIError: 400, it is not valid; `param` is the place in the original.
        """
        if "messages" in extra:
            raise invalid(f"messages is not a field here: send {self.field}.", "messages")
        said = {name: value for name, value in own.items() if value not in (None, [])}
        whole = {**extra, **said, "messages": self.messages}
        try:
            return ChatRequest.model_validate(whole)
        except ValidationError as error:
            found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
            raise self.original(invalid(*explain(found, whole))) from None

    def original(self, error: APIError) -> APIError:
        """Name the original's fields in an error about the chat request."""
        param = error.param or ""
        for chats, own in self._names.items():
            if param == chats or param.startswith((f"{chats}.", f"{chats}[")):
                error.param = own + param.removeprefix(chats)
                error.message = error.message.replace(param, error.param)
        if not param.startswith("messages"):
            return error
        number, _, rest = param.removeprefix("messages").removeprefix("[").partition("]")
        known = number.isdigit() and int(number) < len(self._places)
        error.param = self._places[int(number)] + rest if known else self.field
        error.message = error.message.replace(param, error.param)
        return error


def new_id(prefix: str) -> str:
    """Return a new id for an object of an answer."""
    return f"{prefix}_{uuid.uuid4().hex}"


def objects(value: Any, place: str) -> list[dict[str, Any]]:
    """Return a list of JSON objects.

    Raises:
        APIError: 400, it is none.
    """
    if not isinstance(value, list):
        raise invalid(f"{place} should be an array.", place)
    for i, each in enumerate(value):
        if not isinstance(each, dict):
            raise invalid(f"{place}[{i}] should be a JSON object.", f"{place}[{i}]")
    return value


def required(value: Mapping[str, Any], name: str, place: str) -> str:
    """Return a field that has to be a string.

    Raises:
        APIError: 400, it is not there, or something else.
    """
    found = value.get(name)
    if not isinstance(found, str):
        raise invalid(f"{place}.{name} should be a string.", f"{place}.{name}")
    return found
