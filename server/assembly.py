"""Detokenise incrementally: release tokens as text as soon as no stop string can reach back into them.

Text is cut at the stop string that is complete first, regardless of token boundaries, so an answer does not depend on
how it was tokenised or streamed.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from waver.engines.base import Finish, Step
from waver.engines.tokens import TokenText
from waver.server.message.parts import Part

Reason = Finish | Literal["tool_calls"]
"""The reason why a choice ended, as clients are told."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer: its bytes, as far as they are part of the text, and its `offset` in characters."""

    step: Step
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """An addition to one choice: text with its tokens, or its end.

    `traced` are all tokens that were spent on it: also those that a stop string cut away. `ended_by` is the token that
    ended the answer and has no text. `parts` are what the text adds to a message; None where it is all content.
    """

    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    traced: tuple[Step, ...] = ()
    finish: Reason | None = None
    ended_by: Token | None = None
    parts: tuple[Part, ...] | None = None
    stop_reason: str | int | None = None
    """The stop string or the stop token that ended it, where the request named one."""


@dataclass(slots=True)
class Group:
    """The shortest run of tokens whose bytes form whole characters."""

    text: str = ""
    steps: list[Step] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)


class TextAssembly:
    """Incremental detokeniser of one choice; `include_stop`: the text ends behind its stop string, not in front."""

    def __init__(
        self, index: int, tokens: TokenText, stops: Sequence[str] = (), offset: int = 0, include_stop: bool = False
    ) -> None:
        self.index = index
        self.stopped = False
        self.stop_string: str | None = None
        """The stop string that ended the text."""
        self.offset = offset
        self._tokens = tokens
        self._stops = stops
        self._include_stop = include_stop
        self._strings = StopStrings(stops)
        self._stream = tokens.stream()
        self._decoder = _decoder()
        self._open = Group()
        self._held: list[Group] = []

    def push(self, step: Step) -> list[Piece]:
        """Take a token, give what can be shown now; sets `stopped` when a stop string is complete."""
        data = self._tokens.token_bytes(step.token)
        group = self._open
        # Most tokens are plain ASCII, which neither ends a code point nor begins one.
        plain = not group.steps and data.isascii()
        group.text += self._stream.push(step.token)
        group.steps.append(step)
        group.data.append(data)
        if not plain:
            self._decoder.decode(data)
            if data and self._decoder.getstate()[0]:
                return []  # the rest of a code point is still to come
            self._decoder.reset()
        if len(group.steps) == 1 and "\ufffd" not in group.text:
            # Some tokenizers spell a token otherwise where a text begins, so the text knows better.
            group.data = [group.text.encode()]
        return self._close_group()

    def flush(self) -> list[Piece]:
        """Give what is still held: no more tokens will come. Half a code point is never shown."""
        if self.stopped:
            return []
        pieces = self._close_group() if self._open.steps else []
        pieces += [self._release(group) for group in self._held]
        self._held.clear()
        return pieces

    def end(self, finish: Reason, by: Step | None = None, stop_ids: Sequence[int] = ()) -> Piece:
        """Return the last piece, which has no text; `stop_ids` are the request's own stop tokens."""
        token = Token(by, self._tokens.token_bytes(by.token), self.offset) if by else None
        reason = by.token if by and by.token in stop_ids else self.stop_string
        return Piece(self.index, finish=finish, ended_by=token, traced=(by,) if by else (), stop_reason=reason)

    def _close_group(self) -> list[Piece]:
        group, self._open = self._open, Group()
        if not self._stops:
            return [self._release(group)]
        found = self._strings.push(group.text)
        before = sum(len(held.text) for held in self._held)
        self._held.append(group)
        if found is None:
            safe = before + len(group.text) - self._strings.overlap
        else:
            safe = before + found[0] - (0 if self._include_stop else len(found[1]))
        pieces = []
        while self._held and len(self._held[0].text) <= safe:
            group = self._held.pop(0)
            safe -= len(group.text)
            pieces.append(self._release(group))
        if found is not None:
            self.stopped, self.stop_string = True, found[1]
            for group in self._held:
                pieces.append(self._release_cut(group, safe))
                safe = 0
            self._held.clear()
        return pieces

    def _release(self, group: Group) -> Piece:
        tokens = tuple([Token(step, data, self.offset) for step, data in zip(group.steps, group.data, strict=True)])
        self.offset += len(group.text)
        return Piece(self.index, group.text, tokens, tuple(group.steps))

    def _release_cut(self, group: Group, length: int) -> Piece:
        """Release the first `length` characters of a group, and its tokens cut to them."""
        decoder, tokens, shown = _decoder(), [], 0
        for step, data in zip(group.steps, group.data, strict=True):
            kept = bytearray()
            for byte in data:
                if shown == length:
                    break
                shown += len(decoder.decode(bytes([byte])))
                kept.append(byte)
            if kept:
                tokens.append(Token(step, bytes(kept), self.offset))
        self.offset += length
        return Piece(self.index, group.text[:length], tuple(tokens), tuple(group.steps))


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


class StopStrings:
    """Matches stop strings in a growing text (Knuth, Morris and Pratt). Each character is read once, whatever the
    length of the stop strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, borders(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self.overlap = 0
        """Length of the text's longest end that a stop string begins with, short of a whole one."""

    def push(self, text: str) -> tuple[int, str] | None:
        """Take more text in. Return the stop string that is complete first, of those that end at one character the
        longest, with the number of characters up to its end; None if there is none."""
        found: tuple[int, int, str] | None = None
        for i, (stop, border) in enumerate(self._stops):
            matched = self._matched[i]
            for at, character in enumerate(text, 1):
                while matched and (matched == len(stop) or stop[matched] != character):
                    matched = border[matched - 1]
                matched += stop[matched] == character
                if matched == len(stop):
                    found = min(found or (at, -len(stop), stop), (at, -len(stop), stop))
            self._matched[i] = border[-1] if matched == len(stop) else matched
        self.overlap = max(self._matched, default=0)
        return (found[0], found[2]) if found else None


@lru_cache(maxsize=256)
def borders(word: str) -> Sequence[int]:
    """Compute the failure function of a word: for each prefix, the length of its longest proper prefix that is also its
    suffix."""
    out, length = [0] * len(word), 0
    for i in range(1, len(word)):
        while length and word[i] != word[length]:
            length = out[length - 1]
        length += word[i] == word[length]
        out[i] = length
    return out
