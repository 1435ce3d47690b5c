"""Grammars of answers in which a model may call tools, or not: calls as Hermes and Qwen write them, and what else the
answer may be."""

from __future__ import annotations

import json
from typing import Any

from waver.engines.schema import MOST_CHARACTERS, flaw
from waver.engines.schema_check_worker import LARK
from waver.engines.tokens import TokenText
from waver.server.errors import invalid
from waver.server.tools.forced_schema import calls_schema
from waver.server.tools.hermes import CLOSES, OPENS
from waver.server.tools.offer import Offer
from waver.server.tools.schemas import Tool

GUIDANCE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The options of llguidance for JSON in a call, which models were trained to write as Python does."""


def strict_calls(offered: Offer, tokens: TokenText) -> str:
    """Make the grammar of any text in which every call follows the schema of its tool; calls of tools that are not
    strict have an object as arguments.

    Raises:
        APIError: 400, a schema is larger than it may be.
    """
    if OPENS in tokens.control_tokens:
        head = [f"start: (text {OPENS} call)* text", r"text: /(.|\n)*/"]
    else:
        head = ["start: (to_call call)* rest", rf"to_call[lazy]: /(.|\n)*{OPENS}/", "rest: REST"]
        head.append(rf"REST: /(.|\n)*/ & ~/(.|\n)*{OPENS}(.|\n)*/")
    return _lark([*head, f'call: /\\n?/ json "\\n" {_literal(CLOSES, tokens)}'], offered, strict_only=True)


def form_or_calls(form: str, offered: Offer, tokens: TokenText) -> str:
    """Make the grammar of answers that either have a form or are calls.

    Args:
        form: a JSON schema, as text.

    Raises:
        APIError: 400, a schema is larger than it may be.
    """
    schema = json.dumps({**json.loads(form), "x-guidance": GUIDANCE})
    more = "" if offered.single else ' ("\\n" call)*'
    call = f'call: {_literal(OPENS, tokens)} "\\n" json "\\n" {_literal(CLOSES, tokens)}'
    return _lark(["start: form | calls", f"form: %json {schema}", f"calls: call{more}", call], offered)


def _lark(rules: list[str], offered: Offer, strict_only: bool = False) -> str:
    choices = " | ".join(f"tool_{i}" for i in range(len(offered.tools)))
    made = [f"tool_{i}: %json {json.dumps(_schema(tool, strict_only))}" for i, tool in enumerate(offered.tools)]
    text = LARK + "\n".join([*rules, f"json: {choices}", *made])
    if len(text) > MOST_CHARACTERS:
        raise invalid(f"The schemas of the tools' parameters have more than {MOST_CHARACTERS} characters.", "tools")
    return text


def _schema(tool: Tool, strict_only: bool) -> dict[str, Any]:
    """Return the schema of a call of one tool."""
    if strict_only and not tool.function.strict:
        free = {"type": "object", "additionalProperties": True}
        function = tool.function.model_copy(update={"parameters": free})
        tool = tool.model_copy(update={"function": function})
    schema = calls_schema([tool], single=True)
    if found := flaw(schema):
        raise invalid(f"The schema of the tools' parameters{found}.", "tools")
    return {**schema, "x-guidance": GUIDANCE}


def _literal(word: str, tokens: TokenText) -> str:
    """Write a tag in Lark's notation: `<tag>` is a control token there, and `"<tag>"` a text."""
    return word if word in tokens.control_tokens else json.dumps(word)
