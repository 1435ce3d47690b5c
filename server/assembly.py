"""Tokens to text: whole tokens are let go as soon as no stop string can reach back into them.

Text is cut where a stop string ends first, whatever tokens it came in, so an answer does not depend on how it was
tokenised or streamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engines.base import Finish, Step
from engines.tokens import TokenText


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a client sees it: its bytes, as far as they stand in the text, from character `offset` on."""

    step: Step
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What is added to one choice: text with its tokens, or its end.

    `traced` are all tokens that were spent on it: also those that a stop string cut away. `ended_by` is the token that
    ended the answer and has no text.
    """

    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    traced: tuple[Step, ...] = ()
    finish: Finish | None = None
    ended_by: Token | None = None


@dataclass(slots=True)
class Group:
    """The fewest tokens that make whole characters."""

    text: str
    steps: tuple[Step, ...]


class TextAssembly:
    """The text of one choice in the making."""

    def __init__(self, index: int, tokens: TokenText, stops: Sequence[str] = (), offset: int = 0) -> None:
        self.index = index
        self.stopped = False
        self.offset = offset
        self._tokens = tokens
        self._stream = tokens.stream()
        self._stops = stops
        self._open: list[Step] = []
        self._held: list[Group] = []

    def push(self, step: Step) -> Iterator[Piece]:
        """Take a token, give what can be shown now; sets `stopped` when a stop string is complete."""
        text = self._stream.push(step.token)
        self._open.append(step)
        if not text and self._tokens.token_bytes(step.token):
            return  # the rest of a code point is still to come
        yield from self._close_group(text)

    def flush(self) -> Iterator[Piece]:
        """Give what is still held: no more tokens will come."""
        if self.stopped:
            return
        text = self._stream.flush()
        if text or self._open:
            yield from self._close_group(text)
        while self._held:
            yield self._release(self._held.pop(0))

    def end(self, finish: Finish, by: Step | None = None) -> Piece:
        """The last piece, without text."""
        token = Token(by, self._tokens.token_bytes(by.token), self.offset) if by else None
        return Piece(self.index, finish=finish, ended_by=token, traced=(by,) if by else ())

    def _close_group(self, text: str) -> Iterator[Piece]:
        self._held.append(Group(text, tuple(self._open)))
        self._open.clear()
        pending = "".join(group.text for group in self._held)
        cut = first_stop(pending, self._stops)
        self.stopped = cut is not None
        safe = len(pending) - overlap(pending, self._stops) if cut is None else cut
        while self._held and len(self._held[0].text) <= safe:
            group = self._held.pop(0)
            if cut is not None and safe == 0:
                yield Piece(self.index, traced=group.steps)
                continue
            safe -= len(group.text)
            yield self._release(group)
        if cut is not None:
            for group in self._held:
                yield self._release(Group(group.text[:safe], group.steps))
                safe = 0
            self._held.clear()

    def _release(self, group: Group) -> Piece:
        room = len(group.text.encode())
        whole = sum(len(self._tokens.token_bytes(step.token)) for step in group.steps)
        tokens = []
        for step in group.steps:
            data = self._tokens.token_bytes(step.token)
            if self.stopped and room < whole:
                data, room = data[:room], max(0, room - len(data))
                if not data:
                    continue
            tokens.append(Token(step, data, self.offset))
        self.offset += len(group.text)
        return Piece(self.index, group.text, tuple(tokens), group.steps)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where to cut: at the stop string that is complete first; of those that end together, at the longest."""
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop string could begin with."""
    return max(
        (k for stop in stops for k in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:k])), default=0
    )
