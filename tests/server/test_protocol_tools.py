"""Tools and reasoning in the Responses and Messages APIs, through their own clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.server.test_tools import CALL, TOOLS, WEATHER
from tests.server.test_tools import sdk as sdk
from tests.server.test_tools import server as server

HELLO: Any = [{"role": "user", "content": "hello"}]
FUNCTIONS: list[Any] = [{"type": "function", **tool["function"], "strict": False} for tool in TOOLS]
CUSTOM: list[Any] = [
    {"name": tool["function"]["name"], "input_schema": tool["function"].get("parameters", {"type": "object"})}
    for tool in TOOLS
]
TEXT = f"<think>\nWhere?\n</think>\n\nLet me see.\n{CALL}"
ARGUMENTS = {"city": "Rome", "days": 2}


def script(text: str) -> dict[str, Any]:
    return {"policy": [{"name": "script", "text": text}]}


@pytest.fixture
def claude(server: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_response_has_reasoning_text_and_calls(sdk: openai.OpenAI) -> None:
    options: Any = {"model": "small", "input": "hello", "tools": FUNCTIONS, "extra_body": script(TEXT)}
    whole = sdk.responses.create(**options)
    with sdk.responses.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    both: Any = (whole, final)
    for found in both:
        thought, message, call = found.output
        assert (thought.type, message.type, call.type) == ("reasoning", "message", "function_call")
        assert thought.content[0].text == "Where?"
        assert message.content[0].text == "Let me see."
        assert (call.name, json.loads(call.arguments), call.status) == ("weather", ARGUMENTS, "completed")
        assert found.usage.output_tokens_details.reasoning_tokens > 0
        assert found.status == "completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3
    assert kinds.count("response.function_call_arguments.done") == 1
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


def test_a_response_goes_on_with_a_tools_result(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model="small", input="hello", tools=FUNCTIONS, extra_body=script(TEXT))
    call: Any = first.output[2]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    options: Any = {"model": "small", "tools": FUNCTIONS, "max_output_tokens": 1}
    stored = sdk.responses.create(input=[result], previous_response_id=first.id, **options)
    items: Any = [{"role": "user", "content": "hello"}, *(item.model_dump() for item in first.output), result]
    given = sdk.responses.create(input=items, store=False, **options)
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": "Let me see.", "reasoning_content": "Where?", "tool_calls": [
            {"id": call.call_id, "type": "function", "function": {"name": "weather", "arguments": call.arguments}}
        ]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"},
    ]  # fmt: skip
    chat = sdk.chat.completions.create(model="small", messages=messages, tools=TOOLS, max_tokens=1)
    assert chat.usage is not None
    assert stored.usage is not None
    assert given.usage is not None
    assert stored.usage.input_tokens == given.usage.input_tokens == chat.usage.prompt_tokens


def test_a_forced_call_in_a_response(sdk: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "name": "weather"}
    options: Any = {"model": "small", "input": "hello", "tools": FUNCTIONS, "max_output_tokens": 300}
    (call,) = sdk.responses.create(tool_choice=choice, **options).output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in WEATHER["properties"]["city"]["enum"]  # type: ignore[index]
    assert sdk.responses.create(tool_choice="required", **options).output[0].type == "function_call"


def test_a_message_has_thinking_text_and_calls(claude: anthropic.Anthropic) -> None:
    options: Any = {"model": "small", "messages": HELLO, "tools": CUSTOM, "max_tokens": 300, "extra_body": script(TEXT)}
    whole = claude.messages.create(**options)
    with claude.messages.stream(**options) as stream:
        final = stream.get_final_message()
    both: Any = (whole, final)
    for found in both:
        thought, said, call = found.content
        assert (thought.type, said.type, call.type) == ("thinking", "text", "tool_use")
        assert (thought.thinking, said.text) == ("Where?", "Let me see.")
        assert (call.name, call.input) == ("weather", ARGUMENTS)
        assert found.stop_reason == "tool_use"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_message_goes_on_with_a_tools_result(claude: anthropic.Anthropic, sdk: openai.OpenAI) -> None:
    options: Any = {"model": "small", "tools": CUSTOM, "max_tokens": 300}
    first = claude.messages.create(messages=HELLO, extra_body=script(TEXT), **options)
    call: Any = first.content[2]
    turns: Any = [
        *HELLO,
        {"role": "assistant", "content": [block.model_dump() for block in first.content]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]},
            {"type": "text", "text": "so?"},
        ]},
    ]  # fmt: skip
    counted = claude.messages.count_tokens(model="small", messages=turns, tools=CUSTOM)
    arguments = json.dumps(ARGUMENTS)
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": "Let me see.", "reasoning_content": "Where?", "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": arguments}}
        ]},
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        {"role": "user", "content": "so?"},
    ]  # fmt: skip
    tools: Any = [{"type": "function", "function": {"name": tool["name"], "parameters": tool["input_schema"]}}
                  for tool in CUSTOM]  # fmt: skip
    chat = sdk.chat.completions.create(model="small", messages=messages, tools=tools, max_tokens=1)
    assert chat.usage is not None
    assert counted.input_tokens == chat.usage.prompt_tokens


def test_a_forced_call_in_a_message(claude: anthropic.Anthropic) -> None:
    """One call of a bounded schema: of several, or of one with free arguments, a random model may not see the end."""
    options: Any = {"model": "small", "messages": HELLO, "tools": CUSTOM[:1], "max_tokens": 300}
    alone = {"disable_parallel_tool_use": True}
    for choice in ({"type": "any", **alone}, {"type": "tool", "name": "weather", **alone}):
        found = claude.messages.create(tool_choice=choice, **options)
        assert found.stop_reason == "tool_use"
        assert all(block.type == "tool_use" for block in found.content)


def test_thinking_is_switched_by_the_template(claude: anthropic.Anthropic) -> None:
    options: Any = {
        "model": "small",
        "messages": HELLO,
        "max_tokens": 2000,
        "extra_body": script("Where?</think>Rome."),
    }
    found = claude.messages.create(thinking={"type": "adaptive"}, **options)
    assert [block.type for block in found.content] == ["thinking", "text"]
    found = claude.messages.create(thinking={"type": "disabled"}, **options)
    assert [block.type for block in found.content] == ["text"]
