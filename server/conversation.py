"""Turn the messages of a request into what chat templates expect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from waver.server.chat_schemas import Message, ToolCall
from waver.server.errors import invalid
from waver.server.tools.schemas import DEEPEST, deeper


def turns(messages: Sequence[Message], param: str = "messages", pictures: bool = False) -> list[dict[str, Any]]:
    """Turn messages into turns: `developer` is `system`, content is one string, and what the older API calls
    `function_call` and `function` is a call of a tool and its result.

    Args:
        pictures: a content with pictures is a list of its parts instead.

    Raises:
        APIError: 400, a message has no content.
    """
    out: list[dict[str, Any]] = []
    last = ""
    """The id of the latest call, which a result of the older API belongs to."""
    for i, message in enumerate(messages):
        out.append(turn(message, f"{param}[{i}]", i, last))
        if pictures and (parts := message.parts):
            out[-1]["content"] = parts
        if calls := out[-1].get("tool_calls"):
            last = calls[-1]["id"]
    return out


def turn(message: Message, param: str, number: int = 0, last_call: str = "") -> dict[str, Any]:
    """Turn one message, the `number`-th, into a template's."""
    text = message.text
    if text is None and message.role != "assistant":
        raise invalid(f"{param}.content is required.", f"{param}.content")
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    out: dict[str, Any] = {"role": role, "content": text or ""}
    if message.calls:
        out["tool_calls"] = [_call(call, f"call_{number}_{j}") for j, call in enumerate(message.calls)]
    if message.thought:  # templates know it by either name
        out |= {"reasoning_content": message.thought, "reasoning": message.thought}
    out |= message.model_dump(include={"name", "tool_call_id"}, exclude_none=True)
    if message.role == "function" and last_call:
        out.setdefault("tool_call_id", last_call)
    return out


def _call(call: ToolCall, new_id: str) -> dict[str, Any]:
    arguments = arguments_object(call.function.arguments)
    return {
        "id": call.id or new_id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def arguments_object(text: str) -> dict[str, Any] | str:
    """Parse the arguments of an earlier call, which templates take as an object; what is no object stays a text."""
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) and not deeper(found, DEEPEST) else text
