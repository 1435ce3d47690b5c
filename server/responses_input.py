"""Turn a request of OpenAI's Responses API into a chat request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from waver.server.chat_schemas import ChatRequest
from waver.server.errors import invalid
from waver.server.schemas import Body, Many, Text
from waver.server.translation import Conversation, objects, required

LOGPROBS = "message.output_text.logprobs"
UNSERVED = ("background", "conversation", "prompt", "context_management", "moderation")
"""Fields that would change what is answered, and how."""
NAMES = {
    "response_format.json_schema": "text.format", "reasoning_effort": "reasoning.effort",
    "max_completion_tokens": "max_output_tokens",
}  # fmt: skip


class TextOptions(Body):
    format: dict[str, Any] = Field({"type": "text"})


class ReasoningOptions(Body):
    effort: Text | None = None


class ResponsesRequest(Body):
    """POST /v1/responses. What is not listed goes to chat as it is: `policy`, `seed`, `top_k`, …"""

    model: Text | None = None
    input: Text | Many[dict[str, Any]]
    instructions: Text | None = None
    previous_response_id: Text | None = None
    store: bool = True
    stream: bool = False
    stream_options: dict[str, Any] = Field({})
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] = Field([])
    tool_choice: Text | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions | None = None
    include: list[Text] = Field([])
    truncation: Literal["auto", "disabled"] = "disabled"
    metadata: dict[str, Any] = Field({})
    user: Text | None = None


def unread(body: ResponsesRequest) -> list[str]:
    """List the fields within fields that change nothing."""
    inside = {"text": body.text, "reasoning": body.reasoning}
    found = [f"{name}.{key}" for name, each in inside.items() if each for key in (each.model_extra or {})]
    return found + [f"include[{i}]" for i, each in enumerate(body.include) if each != LOGPROBS]


def to_chat(body: ResponsesRequest, history: Sequence[Mapping[str, Any]]) -> tuple[ChatRequest, Conversation]:
    """Make the chat request, with the messages that a previous response left in front.

    Raises:
        APIError: 400, something cannot be served.
    """
    extra = body.model_extra or {}
    for name in UNSERVED:
        if extra.get(name):
            raise invalid(f"{name} is not supported.", name)
    if extra.get("n", 1) != 1:
        raise invalid("n should be 1: a response has one answer.", "n")
    if body.truncation != "disabled":
        raise invalid("truncation should be 'disabled': nothing is left out of a conversation.", "truncation")
    conversation = Conversation("input", NAMES)
    if body.instructions is not None:
        conversation.add("instructions", "system", content=body.instructions)
    for message in history:
        conversation.add("previous_response_id", **message)
    add_input(conversation, body.input)
    content: dict[str, Any] = {
        "model": body.model,
        "stream": body.stream,
        "stream_options": {"include_usage": True} if body.stream else None,
        "max_completion_tokens": body.max_output_tokens,
        "user": body.user,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "response_format": response_format(body.text.format),
        "reasoning_effort": body.reasoning and body.reasoning.effort,
    }
    if LOGPROBS in body.include:
        content |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    content["tools"] = [tool(each, f"tools[{i}]") for i, each in enumerate(body.tools)]
    content |= {"tool_choice": tool_choice(body.tool_choice), "parallel_tool_calls": body.parallel_tool_calls}
    rest = {name: value for name, value in extra.items() if name not in UNSERVED}
    return conversation.request(content, rest), conversation


def add_input(conversation: Conversation, given: str | Sequence[dict[str, Any]]) -> None:
    """Append the messages that `input` stands for.

    Raises:
        APIError: 400, an item cannot be served.
    """
    if isinstance(given, str):
        conversation.add("input", "user", content=given)
        return
    for i, item in enumerate(given):
        place = f"input[{i}]"
        match item.get("type", "message"):
            case "message":
                _add_message(conversation, item, place)
            case "function_call":
                function = {name: required(item, name, place) for name in ("name", "arguments")}
                call = {"id": required(item, "call_id", place), "type": "function", "function": function}
                _assistant(conversation, place).setdefault("tool_calls", []).append(call)
            case "function_call_output":
                output = item.get("output")
                if not isinstance(output, str):
                    output = content(output, f"{place}.output")
                conversation.add(place, "tool", tool_call_id=required(item, "call_id", place), content=output)
            case "reasoning":
                parts = [*objects(item.get("content") or [], place), *objects(item.get("summary") or [], place)]
                thought = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
                if thought:
                    conversation.add(place, "assistant", content=None, reasoning_content=thought)
            case other:
                message = f"{place}.type: '{str(other)[:40]}' is not supported; there are: message, function_call, "
                raise invalid(f"{message}function_call_output, reasoning.", f"{place}.type")


def _add_message(conversation: Conversation, item: Mapping[str, Any], place: str) -> None:
    role, given = required(item, "role", place), item.get("content")
    said = given if isinstance(given, str) else content(given, f"{place}.content")
    last = conversation.last
    if role == "assistant" and last.get("role") == "assistant" and last["content"] is None and "tool_calls" not in last:
        last["content"] = said  # behind its reasoning
    else:
        conversation.add(place, role, content=said)


def _assistant(conversation: Conversation, place: str) -> dict[str, Any]:
    """Return the assistant's message that a call belongs to: the one before it, or a new one."""
    last = conversation.last
    return last if last.get("role") == "assistant" else conversation.add(place, "assistant", content=None)


def content(parts: Any, place: str) -> list[dict[str, Any]]:
    """Turn the parts of a message into chat's.

    Raises:
        APIError: 400, a part cannot be served.
    """
    out: list[dict[str, Any]] = []
    for i, part in enumerate(objects(parts, place)):
        here = f"{place}[{i}]"
        match part.get("type"):
            case "input_text" | "output_text" | "text":
                out.append({"type": "text", "text": required(part, "text", here)})
            case "refusal":
                out.append({"type": "text", "text": required(part, "refusal", here)})
            case "input_image" if isinstance(part.get("image_url"), str):
                image = {key: part[key] for key in ("detail",) if part.get(key)}
                out.append({"type": "image_url", "image_url": {"url": part["image_url"], **image}})
            case other:
                message = f"{here}.type: '{str(other)[:40]}' is not supported; there are: input_text, output_text, "
                raise invalid(f"{message}input_image with an image_url.", f"{here}.type")
    return out


def tool(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Turn a tool's description into chat's.

    Raises:
        APIError: 400, it is no function.
    """
    if given.get("type") != "function":
        kind = str(given.get("type"))[:40]
        raise invalid(f"{place}.type: '{kind}' is not supported; there are: function.", f"{place}.type")
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: given[name] for name in fields if given.get(name) is not None}}


def tool_choice(given: str | dict[str, Any] | None) -> Any:
    """Turn a choice of tools into chat's.

    Raises:
        APIError: 400, it is of a kind that is not served.
    """
    if not isinstance(given, dict):
        return given
    if given.get("type") != "function":
        raise invalid("tool_choice should be none, auto, required, or an object of type function.", "tool_choice")
    return {"type": "function", "function": {"name": required(given, "name", "tool_choice")}}


def response_format(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Turn `text.format` into chat's `response_format`.

    Raises:
        APIError: 400, there is no such format.
    """
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            fields = ("name", "schema", "strict", "description")
            return {"type": "json_schema", "json_schema": {name: given[name] for name in fields if name in given}}
        case _:
            raise invalid("text.format.type should be text, json_object or json_schema.", "text.format.type")
