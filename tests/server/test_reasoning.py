"""Reasoning is told apart from the content of an answer, streamed and whole, and given back to the template."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.server.test_tools import CALL, HELLO, say, streamed
from tests.server.test_tools import sdk as sdk
from tests.server.test_tools import server as server
from tests.server.test_tools import web as web

OPENED = {"chat_template_kwargs": {"enable_thinking": True}}
THOUGHT = "I wonder.\nIt is Rome."


def both(sdk: openai.OpenAI, text: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A message whole and streamed, which are the same."""
    options = {"tools": openai.NOT_GIVEN, **options}
    whole = say(sdk, text, **options)
    parts = streamed(say(sdk, text, stream=True, stream_options={"include_usage": True}, **options))
    message = whole.choices[0].message
    assert (message.content or "") == parts["content"]
    assert getattr(message, "reasoning_content", "") == parts["reasoning"] == getattr(message, "reasoning", "")
    assert whole.choices[0].finish_reason == parts["finish"]
    assert whole.usage == parts["usage"]
    return whole, parts


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        (f"<think>\n{THOUGHT}\n</think>\n\nRome.", False, THOUGHT, "Rome."),
        (f"{THOUGHT}\n</think>\n\nRome.", True, THOUGHT, "Rome."),
        (THOUGHT, True, THOUGHT, ""),
        (THOUGHT, False, "", THOUGHT),
        (f"Rome.<think>{THOUGHT}</think>", False, "", f"Rome.<think>{THOUGHT}</think>"),
    ],
)
def test_reasoning_is_told_apart(sdk: openai.OpenAI, text: str, opened: bool, reasoning: str, content: str) -> None:
    whole, parts = both(sdk, text, extra_body=OPENED if opened else {})
    assert (parts["reasoning"], parts["content"]) == (reasoning, content)
    spent = whole.usage.completion_tokens_details.reasoning_tokens
    assert bool(spent) == bool(reasoning)
    assert spent <= whole.usage.completion_tokens
    if reasoning and content:
        assert spent < whole.usage.completion_tokens


def test_calls_follow_reasoning(sdk: openai.OpenAI) -> None:
    from tests.server.test_tools import TOOLS

    whole, parts = both(sdk, f"<think>{THOUGHT}</think>\n{CALL}", tools=TOOLS)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.content is None
    assert parts["reasoning"] == THOUGHT
    assert json.loads(parts["calls"][0]["arguments"])["city"] == "Rome"
    # A call within the block is a thought.
    whole, parts = both(sdk, f"<think>{CALL}</think>Rome.", tools=TOOLS)
    assert (parts["calls"], parts["content"], parts["reasoning"]) == ({}, "Rome.", CALL)


def test_reasoning_can_be_left_out(sdk: openai.OpenAI) -> None:
    text = f"<think>{THOUGHT}</think>Rome."
    whole, _ = both(sdk, text, extra_body={"include_reasoning": False})
    assert whole.choices[0].message.content == "Rome."
    assert not hasattr(whole.choices[0].message, "reasoning_content")
    assert whole.usage.completion_tokens_details.reasoning_tokens > 0


def test_a_form_closes_an_open_block(sdk: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    options: Any = {"model": "small", "messages": HELLO, "max_tokens": 60, "response_format": wanted}
    answer = sdk.chat.completions.create(**options, extra_body=OPENED)
    assert json.loads(answer.choices[0].message.content or "")["a"] in (1, 2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_effort_reaches_the_template(sdk: openai.OpenAI) -> None:
    def prompt(**options: Any) -> int:
        answer = sdk.chat.completions.create(model="small", messages=HELLO, max_tokens=1, **options)  # type: ignore[arg-type]
        assert answer.usage is not None
        return int(answer.usage.prompt_tokens)

    silent = prompt()
    assert prompt(reasoning_effort="none") == silent
    assert prompt(reasoning_effort="high") == prompt(extra_body=OPENED) > silent
    assert prompt(reasoning_effort="high", extra_body={"chat_template_kwargs": {"enable_thinking": False}}) == silent


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "bogus"}, "reasoning_effort"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),  # the model has no think tags as tokens
        ({"include_reasoning": "no"}, "include_reasoning"),
    ],
)
def test_what_is_refused(web: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = web.post("/v1/chat/completions", json={"model": "small", "messages": HELLO, "max_tokens": 4, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
