"""Read calls as a model's `response_template` describes them, by transformers' own parser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import structlog

from waver.engines.base import Finish
from waver.server.message.parts import Arguments, CallStart, Content, NewId, Part, new_call_id
from waver.server.tools.offer import Offer

log = structlog.get_logger("waver")


class TemplateCalls:
    """transformers' `ResponseParser` as a `PartReader`. A call is passed on when it is complete."""

    def __init__(self, tokenizer: Any, offer: Offer, new_id: NewId = new_call_id) -> None:
        self.complete = self.broken = 0
        self._single, self._new_id = offer.single, new_id
        self._parser = tokenizer.get_response_parser(prefix="", tools=offer.for_template)
        self._raw: list[str] = []
        """The text of the region that is being read."""
        self._failed = False

    def push(self, text: str, ids: Sequence[int] = ()) -> list[Part]:
        if self._failed:
            return [Content(text)]
        try:
            return self._parts(self._parser.feed(text))
        except Exception as error:  # what a template's own expressions raise
            return self._give_up(error, text)

    def finish(self, finish: Finish) -> list[Part]:
        if self._failed:
            return []
        try:
            return self._parts(self._parser.finalize()[1])
        except Exception as error:  # as above, and fields that are missing
            return self._give_up(error, "")

    def _give_up(self, error: Exception, text: str) -> list[Part]:
        self._failed = True
        log.warning("a response template failed", reason=f"{type(error).__name__}: {error}"[:300])
        return [Content(left)] if (left := "".join([*self._raw, text])) else []

    def _parts(self, events: list[dict[str, Any]]) -> list[Part]:
        out: list[Part] = []
        for event in events:
            if event["field"] == "content":
                out += [Content(event["text"])] if event["type"] == "region_chunk" else []
            elif event["type"] == "region_chunk":
                self._raw.append(event["text"])
            elif event["type"] == "region_close":
                out += self._region(event["field"], event["value"])
                self._raw.clear()
        return out

    def _region(self, name: str, value: Any) -> list[Part]:
        """Return the parts of a region that was closed: calls, or text that is none."""
        calls = value if isinstance(value, list) else [value]
        functions = [each.get("function", each) for each in calls if isinstance(each, dict)]
        if name != "tool_calls" or not all(map(is_call, functions)):
            self.broken += name == "tool_calls"
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
