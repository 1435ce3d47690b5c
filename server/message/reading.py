"""Read the text of one answer as the parts of a message: reasoning, content and calls of tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from waver.engines.base import Finish
from waver.engines.tokens import TokenText
from waver.server.assembly import Piece, Reason
from waver.server.message.parts import Content, Part, PartReader, Reasoning, merged
from waver.server.message.reasoning import ReasoningReader


@dataclass(frozen=True)
class MessageFormat:
    """The way to read the text of an answer.

    `reasoning` begins to tell apart what the model thinks before it answers; None: nothing is. `calls` begins to read
    calls in what follows; None: there are none. `markers`: control tokens that are part of what `calls` reads; None:
    all of them. `single`: the answer ends with its first call. `include_reasoning`: reasoning is a part of the message.
    """

    reasoning: Callable[[], ReasoningReader] | None = None
    calls: Callable[[], PartReader] | None = None
    markers: frozenset[str] | None = frozenset()
    single: bool = False
    include_reasoning: bool = True


class Reading:
    """Reads the pieces of one answer, and gives each its parts."""

    def __init__(self, how: MessageFormat, tokens: TokenText) -> None:
        self.reasoning_tokens = 0
        self._block = None if how.reasoning is None else how.reasoning()
        self._calls = None if how.calls is None else how.calls()
        self._single, self._included = how.single, how.include_reasoning
        self._tokens = tokens
        self._markers = how.markers

    def begin(self, opened: bool) -> None:
        """Say, before the first piece, whether the answer begins in a think block that a policy has opened."""
        if self._block is not None:
            self._block.begin(opened)

    @property
    def complete(self) -> int:
        """The number of complete calls so far."""
        return 0 if self._calls is None else self._calls.complete

    @property
    def broken(self) -> int:
        """The number of texts so far that began as calls and are none."""
        return 0 if self._calls is None else self._calls.broken

    @property
    def done(self) -> bool:
        """Return whether the answer is to end here: it has the only call that it may have."""
        return self._single and self.complete > 0

    def push(self, piece: Piece) -> Piece:
        """Return the piece with its parts."""
        text = self._text(piece)
        reasoning, parts = "", list[Part]()
        if self._block is not None:
            before = self._block.inside
            reasoning, text = self._block.push(text, [token.step.token for token in piece.tokens])
            if before or reasoning or self._block.inside:
                self.reasoning_tokens += len(piece.tokens)
        if reasoning and self._included:
            parts.append(Reasoning(reasoning))
        if text:
            parts += self._rest(text, piece)
        return replace(piece, parts=tuple(merged(parts)))

    def finish(self, finish: Finish) -> tuple[tuple[Part, ...], Reason]:
        """Take the end of the answer: return its last parts, and why it ended."""
        parts: list[Part] = []
        if self._block is not None:
            reasoning, text = self._block.finish()
            parts += [Reasoning(reasoning)] if reasoning and self._included else []
            if text:
                parts += self._rest(text)
        if self._calls is not None:
            parts += self._calls.finish(finish)
        called = self.complete and finish == "stop"
        return tuple(merged(parts)), "tool_calls" if called else finish

    def _rest(self, text: str, piece: Piece | None = None) -> list[Part]:
        """Read text behind the think block."""
        if self._calls is None:
            return [Content(text)]
        return self._calls.push(text, [token.step.token for token in piece.tokens] if piece else ())

    def _text(self, piece: Piece) -> str:
        """Return the text of a piece, with control tokens that mean something to those who read it."""
        before, behind, begun = "", "", False
        for token in piece.tokens:
            name = "" if token.data else self._marker(token.step.token)
            before, behind = (before, behind + name) if begun else (before + name, behind)
            begun = begun or bool(token.data)
        return before + piece.text + behind

    def _marker(self, token: int) -> str:
        if not self._tokens.is_special(token):
            return ""
        name = str(self._tokens.tokenizer.convert_ids_to_tokens(token) or "")
        readers = [self._markers, *([] if self._block is None else [self._block.markers])]
        return name if any(markers is None or name in markers for markers in readers) else ""
