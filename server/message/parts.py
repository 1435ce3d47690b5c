"""The parts of an assistant's message as it is written: content, reasoning, and calls of tools."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from waver.engines.base import Finish


@dataclass(frozen=True, slots=True)
class Content:
    """More of the text that is meant for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The beginning of a call; `index` counts the calls of the message from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A call that turned out to be none: its text follows as content."""

    index: int


Part = Content | Reasoning | CallStart | Arguments | Abandoned


class PartReader(Protocol):
    """Reads a text piece by piece, and says what its parts are. The parts do not depend on how the text is cut."""

    @property
    def complete(self) -> int:
        """The number of calls that are complete so far."""

    @property
    def broken(self) -> int:
        """The number of texts so far that began as calls and are none."""

    def push(self, text: str, ids: Sequence[int] = ()) -> list[Part]:
        """Take more of the text, and the tokens that it came in."""

    def finish(self, finish: Finish) -> list[Part]:
        """Take the end of the text, and why it ended."""


def new_call_id() -> str:
    """Make the id of a call."""
    return f"call_{secrets.token_hex(12)}"


NewId = Callable[[], str]


@dataclass
class Call:
    """A call as a finished message has it."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": "".join(self.arguments)},
        }


@dataclass
class Message:
    """An assistant's message, put together from its parts."""

    calls: dict[int, Call] = field(default_factory=dict)
    _content: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def add(self, parts: Iterable[Part]) -> None:
        for part in parts:
            match part:
                case Content(text):
                    self._content.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case CallStart(index, id_, name):
                    self.calls[index] = Call(id_, name)
                case Arguments(index, text):
                    self.calls[index].arguments.append(text)
                case Abandoned(index):
                    self.calls.pop(index, None)


def merged(parts: Sequence[Part]) -> list[Part]:
    """Join neighbours of one kind, so that a text yields the same parts however it was cut."""
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        match last, part:
            case Content(a), Content(b):
                out[-1] = Content(a + b)
            case Reasoning(a), Reasoning(b):
                out[-1] = Reasoning(a + b)
            case Arguments(i, a), Arguments(j, b) if i == j:
                out[-1] = Arguments(i, a + b)
            case _:
                out.append(part)
    return out
