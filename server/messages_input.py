"""Turn a request of Anthropic's Messages API into a chat request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from waver.engines.tokens import TokenText
from waver.server.chat_schemas import ChatRequest
from waver.server.errors import invalid
from waver.server.schemas import Body, Many, Text
from waver.server.translation import Conversation, objects, required

CHOICES = {"auto": "auto", "any": "required", "none": "none"}
EFFORTS = ("low", "medium", "high", "xhigh", "max")
NAMES = {
    "response_format.json_schema": "output_config.format", "reasoning_effort": "output_config.effort",
    "stop": "stop_sequences", "thinking_token_budget": "thinking.budget_tokens",
}  # fmt: skip
SWITCH = "enable_thinking"
"""The variable by which chat templates open or close the thinking."""


class MessagesRequest(Body):
    """POST /v1/messages. What is not listed goes to chat as it is: `policy`, `seed`, `min_p`, …"""

    model: Text | None = None
    messages: Many[dict[str, Any]] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(None, ge=1)
    system: Text | list[dict[str, Any]] | None = None
    stop_sequences: list[Text] = Field([])
    stream: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] = Field([])
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] = Field({})
    output_format: dict[str, Any] | None = None
    metadata: dict[str, Any] = Field({})


def to_chat(body: MessagesRequest, tokens: TokenText) -> tuple[ChatRequest, Conversation]:
    """Make the chat request. A conversation that ends with the assistant's turn is continued in it.

    Args:
        tokens: the tokenizer of the engine that writes: its template and its tags tell whether the model thinks.

    Raises:
        APIError: 400, something cannot be served.
    """
    conversation = Conversation("messages", NAMES)
    if body.system is not None:
        words = body.system if isinstance(body.system, str) else text(body.system, "system")
        conversation.add("system", "system", content=words)
    for i, message in enumerate(body.messages):
        add_message(conversation, message, f"messages[{i}]")
    extra = body.model_extra or {}
    if extra.get("n", 1) != 1:
        raise invalid("n should be 1: a message has one answer.", "n")
    content: dict[str, Any] = {
        "model": body.model,
        "stream": body.stream,
        "stream_options": {"include_usage": True} if body.stream else None,
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "user": body.metadata.get("user_id"),
        "response_format": response_format(body),
        "reasoning_effort": effort(body),
    }
    if conversation.last["role"] == "assistant":
        content |= {"continue_final_message": True, "add_generation_prompt": False}
    if body.thinking is not None and SWITCH in tokens.template_variables:
        content["chat_template_kwargs"] = {SWITCH: thinks(body)}
    if thinks(body) and tokens.think is not None and body.thinking is not None:
        content["thinking_token_budget"] = body.thinking.get("budget_tokens")
    content["tools"] = [tool(each, f"tools[{i}]") for i, each in enumerate(body.tools)]
    content |= tool_choice(body.tool_choice)
    return conversation.request(content, extra), conversation


def add_message(conversation: Conversation, message: Mapping[str, Any], place: str) -> None:
    """Append the chat's messages that a message stands for: results of tools are messages of their own.

    Raises:
        APIError: 400, a block cannot be served.
    """
    role, given = required(message, "role", place), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise invalid(f"{place}.role should be user, assistant or system.", f"{place}.role")
    if isinstance(given, str):
        conversation.add(place, role, content=given)
        return
    parts: list[dict[str, Any]] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(objects(given, f"{place}.content")):
        here = f"{place}.content[{i}]"
        match block.get("type"):
            case "text":
                parts.append({"type": "text", "text": required(block, "text", here)})
            case "image":
                parts.append(image(block.get("source"), here))
            case "thinking" if role == "assistant":
                thoughts.append(required(block, "thinking", here))
            case "redacted_thinking" if role == "assistant":
                pass  # nobody but its author can read it
            case "tool_use" if role == "assistant":
                calls.append(call(block, here))
            case "tool_result" if role == "user":
                conversation.add(
                    here, "tool", tool_call_id=required(block, "tool_use_id", here), content=result(block, here)
                )
            case other:
                raise invalid(f"{here}.type: '{str(other)[:40]}' is not supported here.", f"{here}.type")
    if role == "assistant":
        extra = ({"tool_calls": calls} if calls else {}) | (
            {"reasoning_content": "".join(thoughts)} if thoughts else {}
        )
        conversation.add(place, role, content=parts or None, **extra)
    elif parts:
        conversation.add(place, role, content=parts)


def call(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Turn a `tool_use` block into a chat's call."""
    from waver.server.sse import dump

    given = block.get("input")
    if not isinstance(given, dict):
        raise invalid(f"{place}.input should be a JSON object.", f"{place}.input")
    function = {"name": required(block, "name", place), "arguments": dump(given).decode()}
    return {"id": required(block, "id", place), "type": "function", "function": function}


def result(block: Mapping[str, Any], place: str) -> str | list[dict[str, Any]]:
    """Return what a tool answered."""
    given = block.get("content")
    if given is None:
        return ""
    return given if isinstance(given, str) else [{"type": "text", "text": text(given, f"{place}.content")}]


def text(blocks: Any, place: str) -> str:
    """Return the text of blocks that may hold nothing else."""
    out = []
    for i, block in enumerate(objects(blocks, place)):
        if block.get("type") != "text":
            raise invalid(f"{place}[{i}].type should be text.", f"{place}[{i}].type")
        out.append(required(block, "text", f"{place}[{i}]"))
    return "\n".join(out)


def image(source: Any, place: str) -> dict[str, Any]:
    """Turn an image's source into a chat's part."""
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "base64":
        url = f"data:{required(source, 'media_type', f'{place}.source')};base64,"
        url += required(source, "data", f"{place}.source")
    elif kind == "url":
        url = required(source, "url", f"{place}.source")
    else:
        raise invalid(f"{place}.source.type should be base64 or url.", f"{place}.source")
    return {"type": "image_url", "image_url": {"url": url}}


def tool(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Turn a tool's description into chat's.

    Raises:
        APIError: 400, it is one that Anthropic's servers run.
    """
    if given.get("type") not in (None, "custom"):
        kind = str(given["type"])[:40]
        raise invalid(f"{place}.type: '{kind}' is not supported; there are: custom.", f"{place}.type")
    function = {name: given[name] for name in ("name", "description", "strict") if given.get(name) is not None}
    return {"type": "function", "function": {**function, "parameters": given.get("input_schema") or {}}}


def tool_choice(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Turn a choice of tools into chat's fields.

    Raises:
        APIError: 400, there is no such choice.
    """
    given = given or {"type": "auto"}
    if given.get("type") == "tool":
        choice: Any = {"type": "function", "function": {"name": required(given, "name", "tool_choice")}}
    else:
        choice = CHOICES.get(str(given.get("type")))
    if choice is None:
        raise invalid("tool_choice.type should be auto, any, tool or none.", "tool_choice.type")
    single = {"parallel_tool_calls": False} if given.get("disable_parallel_tool_use") else {}
    return {"tool_choice": choice, **single}


def response_format(body: MessagesRequest) -> dict[str, Any] | None:
    """Turn the output's format into chat's.

    Raises:
        APIError: 400, there is no such format.
    """
    given = body.output_config.get("format") or body.output_format
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        raise invalid("output_config.format should have the type json_schema and a schema.", "output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given["schema"]}}


def effort(body: MessagesRequest) -> str | None:
    """Return the effort of thinking, as chat has it.

    Raises:
        APIError: 400, there is no such effort.
    """
    given = body.output_config.get("effort")
    if given is not None and given not in EFFORTS:
        raise invalid(f"output_config.effort should be one of {', '.join(EFFORTS)}.", "output_config.effort")
    return None if given is None else str(given)


def thinks(body: MessagesRequest) -> bool:
    """Return whether thinking is asked for."""
    return body.thinking is not None and body.thinking.get("type") != "disabled"


def unread(body: MessagesRequest, tokens: TokenText) -> Sequence[str]:
    """List the fields within fields that change nothing."""
    found = [f"output_config.{name}" for name in body.output_config if name not in ("format", "effort")]
    idle = thinks(body) and SWITCH not in tokens.template_variables and tokens.think is None
    return [*found, "thinking"] if idle else found
