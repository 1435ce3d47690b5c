"""Read calls as a model's `response_template` describes them, by transformers' own parser."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import structlog

from waver.engines.base import Finish
from waver.server.message.parts import Arguments, CallStart, Content, NewId, Part, Reasoning, new_call_id
from waver.server.tools.offer import Offer

log = structlog.get_logger("waver")


def with_content(template: dict[str, Any]) -> dict[str, Any]:
    """Copy a response template: nothing in it is required, and text outside of its regions is content."""
    made = copy.deepcopy(template)
    fields = made["fields"]
    if "content" not in fields and all("open" in field or "open_pattern" in field for field in fields.values()):
        fields["content"] = {}
    for field in fields.values():
        field["optional"] = True
    return made


class TemplateCalls:
    """transformers' `ResponseParser` as a `PartReader`. A call is passed on when it is complete; where the template
    fails, the text that it has not turned into parts is content."""

    def __init__(self, tokenizer: Any, offer: Offer, new_id: NewId = new_call_id) -> None:
        self.complete = self.broken = 0
        self._single, self._new_id = offer.single, new_id
        template = with_content(tokenizer.response_template)
        self._parser = tokenizer.get_response_parser(template, prefix="", tools=offer.for_template)
        self._raw: list[str] = []
        """The characters that no part has come of."""
        self._failed = False

    def push(self, text: str, ids: Sequence[int] = ()) -> list[Part]:
        out: list[Part] = []
        for i, character in enumerate(text):
            if self._failed:
                return [*out, Content(text[i:])]
            self._raw.append(character)
            try:
                out += self._parts(self._parser.feed(character))
            except Exception as error:  # what a template's own expressions raise
                out += self._give_up(error)
        return out

    def finish(self, finish: Finish) -> list[Part]:
        if self._failed:
            return []
        try:
            parts = self._parts(self._parser.finalize()[1])
        except Exception as error:  # as above
            return self._give_up(error)
        return parts

    def _give_up(self, error: Exception) -> list[Part]:
        self._failed = True
        self.broken += 1
        log.warning("a response template failed", kind=type(error).__name__)  # its words quote the answer
        return [Content(left)] if (left := "".join(self._raw)) else []

    def _parts(self, events: list[dict[str, Any]]) -> list[Part]:
        out: list[Part] = []
        for event in events:
            field, kind = event["field"], event["type"]
            if kind == "region_chunk" and field in ("content", "thinking"):
                out.append((Content if field == "content" else Reasoning)(event["text"]))
                if field == "content":
                    del self._raw[: len(event["text"])]
            elif kind == "region_close" and field != "content":
                out += [] if field == "thinking" else self._calls(field, event["value"])
                self._raw.clear()
        return out

    def _calls(self, field: str, value: Any) -> list[Part]:
        """Return the parts of a region that was closed: calls, or text that is none."""
        calls = value if isinstance(value, list) else [value]
        functions = [each.get("function", each) for each in calls if isinstance(each, dict)]
        if field != "tool_calls" or not functions or not all(map(is_call, functions)):
            self.broken += field == "tool_calls"
            return [Content("".join(self._raw))]
        out: list[Part] = []
        for function in functions:
            if self._single and self.complete:
                break
            arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
            out += [CallStart(self.complete, self._new_id(), function["name"]), Arguments(self.complete, arguments)]
            self.complete += 1
        return out


def is_call(function: Any) -> bool:
    """Return whether a parsed value is a call: a name, and an object as arguments, if there are any."""
    return isinstance(function.get("name"), str) and isinstance(function.get("arguments") or {}, dict)
