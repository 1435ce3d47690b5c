"""The response objects of chat completions: a message, or what a chunk adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from waver.engines.tokens import TokenText
from waver.server.answer import FinishedChoice
from waver.server.assembly import Piece
from waver.server.logprobs import chat_entry
from waver.server.message.parts import Arguments, CallStart, Content, Part, Reasoning
from waver.server.piecewise import Listed


class ChatFormatter:
    """Chat completions: a whole `message`, or `delta`s that add up to it."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"
    one_prompt = True

    def __init__(self, tokens: TokenText, logprobs: bool, top: int, as_ids: bool = False) -> None:
        self._wanted = logprobs
        self._entry = chat_entry(tokens, top, as_ids)

    def opening(self, index: int) -> dict[str, Any]:
        return self._choice(index, delta={"role": "assistant", "content": ""})

    def part(self, piece: Piece) -> dict[str, Any]:
        if piece.finish:
            return self._choice(piece.index, delta={}, finish_reason=piece.finish)
        parts = [Content(piece.text)] if piece.parts is None else piece.parts
        made = list(map(self._entry, piece.tokens)) if self._wanted else []
        return self._choice(piece.index, delta=delta(parts), logprobs=self._logprobs(made))

    def complete(self, choice: FinishedChoice) -> dict[str, Any]:
        logprobs = self._logprobs(Listed(choice.tokens, self._entry))
        return self._choice(choice.index, message=message(choice), logprobs=logprobs, finish_reason=choice.finish)

    def _choice(
        self, index: int, logprobs: Any = None, finish_reason: str | None = None, **content: Any
    ) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, content: list[dict[str, Any]] | Listed) -> dict[str, Any] | None:
        return {"content": content, "refusal": None} if self._wanted else None


def delta(parts: Sequence[Part]) -> dict[str, Any]:
    """Return what parts add to a message, as a chunk has it. A call's id, type and name are in its first delta only."""
    content = "".join(part.text for part in parts if isinstance(part, Content))
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        if isinstance(part, CallStart):
            function = {"name": part.name, "arguments": ""}
            calls[part.index] = {"index": part.index, "id": part.id, "type": "function", "function": function}
        elif isinstance(part, Arguments):
            entry = calls.setdefault(part.index, {"index": part.index, "function": {"arguments": ""}})
            entry["function"]["arguments"] += part.text
    out: dict[str, Any] = {}
    if reasoning:
        out |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if content or not (reasoning or calls):
        out["content"] = content
    if calls:
        out["tool_calls"] = list(calls.values())
    return out


def message(choice: FinishedChoice) -> dict[str, Any]:
    """Return the message of a finished choice."""
    made = choice.message
    calls = [made.calls[index].as_dict() for index in sorted(made.calls)]
    out: dict[str, Any] = {"role": "assistant", "content": made.content, "refusal": None}
    if calls and not made.content:
        out["content"] = None
    if made.reasoning:
        out |= {"reasoning_content": made.reasoning, "reasoning": made.reasoning}
    return out | ({"tool_calls": calls} if calls else {})
