"""Read calls by vLLM's own tool parsers, where vLLM is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import structlog

from waver.engines.base import Finish
from waver.server.message.parts import Abandoned, Arguments, CallStart, Content, NewId, Part, new_call_id
from waver.server.tools.offer import Offer

log = structlog.get_logger("waver")


def parser_class(name: str) -> Any:
    """Load a tool parser of vLLM's by its name.

    Raises:
        ImportError: vLLM is not installed. KeyError: it has none of this name.
    """
    from vllm.tool_parsers import ToolParserManager

    return ToolParserManager.get_tool_parser(name)


def names() -> list[str]:
    """List the names of vLLM's tool parsers; empty where vLLM is not installed."""
    try:
        from vllm.tool_parsers import ToolParserManager
    except ImportError:
        return []
    return list(ToolParserManager.list_registered())


class VllmCalls:
    """A tool parser of vLLM's as a `PartReader`. A whole text is read by its `extract_tool_calls`, a stream by
    `extract_tool_calls_streaming`; what is no JSON object at the end is not called a call."""

    def __init__(self, kind: Any, tokenizer: Any, offer: Offer, stream: bool, new_id: NewId = new_call_id) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        self.complete = self.broken = 0
        self._stream, self._single, self._new_id = stream, offer.single, new_id
        # Fields are validated here, as vLLM reads them in its own classes.
        self._request = ChatCompletionRequest(messages=[], model="", tools=offer.for_template, tool_choice="auto")
        self._kind, self._tokenizer = kind, tokenizer
        self._parser = kind(tokenizer, self._request.tools)
        self._text = self._said = ""
        """The text, and what of it has been passed on as content."""
        self._ids: list[int] = []
        self._arguments: dict[int, str] = {}

    def push(self, text: str, ids: Sequence[int] = ()) -> list[Part]:
        before, known = self._text, list(self._ids)
        self._text += text
        self._ids += ids
        if not self._stream:
            return []
        try:
            delta = self._parser.extract_tool_calls_streaming(
                before, self._text, text, known, self._ids, list(ids), self._request
            )
        except Exception as error:  # each parser raises its own kinds; the text is content then
            log.warning("a tool parser failed", kind=type(error).__name__)
            self._said += text
            return [Content(text)]
        return [] if delta is None else self._parts(delta)

    def _parts(self, delta: Any) -> list[Part]:
        out: list[Part] = [Content(delta.content)] if delta.content else []
        self._said += delta.content or ""
        for call in delta.tool_calls or ():
            if self._single and call.index:
                continue
            function = call.function
            if call.index not in self._arguments and function is not None and function.name:
                self._arguments[call.index] = ""
                out.append(CallStart(call.index, self._new_id(), function.name))
            if call.index in self._arguments and function is not None and function.arguments:
                self._arguments[call.index] += function.arguments
                out.append(Arguments(call.index, function.arguments))
        return out

    def finish(self, finish: Finish) -> list[Part]:
        return self._end_of_stream(finish) if self._stream else self._whole(finish)

    def _end_of_stream(self, finish: Finish) -> list[Part]:
        """Complete what was passed on by what the whole text says, which alone tells whether a call is one."""
        out: list[Part] = []
        found = self._extracted()
        final = [] if found is None else [call.function for call in found.tool_calls]
        for index, text in self._arguments.items():
            whole = final[index].arguments if index < len(final) else ""
            if is_object(whole) and (whole.startswith(text) or is_object(text)):
                self.complete += 1
                out += [Arguments(index, whole[len(text) :])] if len(whole) > len(text) and not is_object(text) else []
            elif finish != "length":
                self.broken += 1
                out += [Abandoned(index), Content(text)]
        for index in range(len(self._arguments), 1 if self._single else len(final)):
            if index < len(final) and is_object(final[index].arguments):
                self.complete += 1
                out += [CallStart(index, self._new_id(), final[index].name), Arguments(index, final[index].arguments)]
        if not (self._arguments or self.complete) and self._text.startswith(self._said) and self._text != self._said:
            out.append(Content(self._text[len(self._said) :]))  # held back as the beginning of a call
        return out

    def _extracted(self) -> Any:
        """Read the whole text; None where the parser fails."""
        try:
            return self._kind(self._tokenizer, self._request.tools).extract_tool_calls(self._text, self._request)
        except Exception as error:  # each parser raises its own kinds
            log.warning("a tool parser failed", kind=type(error).__name__)
            return None

    def _whole(self, finish: Finish) -> list[Part]:
        found = self._extracted()
        if found is None:
            return [Content(self._text)]
        calls = found.tool_calls[:1] if self._single else found.tool_calls
        whole = [is_object(call.function.arguments) for call in calls]
        if not all(whole) and finish != "length":
            self.broken = len(whole) - sum(whole)
            return [Content(self._text)]
        self.complete = sum(whole)
        out: list[Part] = [Content(found.content)] if found.content else []
        for i, call in enumerate(calls):
            out += [CallStart(i, self._new_id(), call.function.name), Arguments(i, call.function.arguments)]
        return out


def is_object(text: str) -> bool:
    """Return whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
