"""POST /v1/messages through Anthropic's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

HELLO: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def claude(running: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.url, api_key="none", max_retries=0) as client:
        yield client


def ask(claude: anthropic.Anthropic, **options: Any) -> Any:
    return claude.messages.create(**{"model": "waver/frugal", "messages": HELLO, "max_tokens": 24, **options})


def text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_says_what_chat_says(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    found = ask(claude, system=[{"type": "text", "text": "be brief"}], extra_body={"seed": 3})
    messages: Any = [{"role": "system", "content": "be brief"}, *HELLO]
    chat = client.chat.completions.create(model="waver/frugal", messages=messages, max_tokens=24, seed=3)
    assert text(found) == chat.choices[0].message.content
    assert chat.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    assert found.stop_reason == {"stop": "end_turn", "length": "max_tokens"}[chat.choices[0].finish_reason]
    assert found.waver["tokens"] == chat.model_extra["waver"]["tokens"]  # type: ignore[index]
    assert (found.type, found.role, found.model) == ("message", "assistant", "waver/frugal")


def test_a_stream_adds_up_to_the_whole(claude: anthropic.Anthropic) -> None:
    whole = ask(claude, extra_body={"seed": 5})
    with claude.messages.stream(model="waver/frugal", messages=HELLO, max_tokens=24, extra_body={"seed": 5}) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == text(final) == text(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_the_wire_has_events_in_order(http: httpx.Client) -> None:
    body = {"model": "small", "messages": HELLO, "max_tokens": 2, "stream": True, "ignore_eos": True}
    lines = [line for line in http.post("/v1/messages", json=body).text.split("\n") if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert [json.loads(line.removeprefix("data: "))["type"] for line in lines[1::2]] == names


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    options = {"model": "small", "max_tokens": 60, "extra_body": {"seed": 11}}
    whole = text(ask(claude, **options))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    found = ask(claude, stop_sequences=[stop], **options)
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", stop)
    assert text(found) == whole[: whole.index(stop)]


def test_the_assistants_turn_is_continued(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    turns: Any = [*HELLO, {"role": "assistant", "content": "The answer"}]
    found = ask(claude, messages=turns, extra_body={"seed": 6})
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    chat = client.chat.completions.create(model="waver/frugal", messages=turns, max_tokens=24, seed=6, extra_body=extra)
    assert text(found) == chat.choices[0].message.content


def test_tokens_are_counted(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model="small", messages=HELLO, system="be brief")
    assert counted.input_tokens == ask(claude, model="small", system="be brief", max_tokens=1).usage.input_tokens


def test_a_format_is_kept(http: httpx.Client) -> None:
    body = {"model": "small", "messages": HELLO, "max_tokens": 64,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}  # fmt: skip
    found = http.post("/v1/messages", json=body).json()
    assert json.loads(found["content"][0]["text"])["a"] in (1, 2)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages"),
        ({"messages": HELLO, "max_tokens": None}, "max_tokens"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        ({"messages": [*HELLO, {"role": "user", "content": "\ud800"}], "system": "s"}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, "maximum context length"),
        ({"messages": HELLO, "tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"messages": HELLO, "temperature": 9}, "temperature"),
        ({"messages": HELLO, "stop_sequences": ["a", ""]}, "stop_sequences[1]"),
        ({"messages": HELLO, "output_config": {"effort": "bogus"}}, "effort"),
        ({"messages": HELLO, "output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_errors_have_anthropics_form(http: httpx.Client, body: dict[str, Any], words: str) -> None:
    content = json.dumps({"model": "small", "max_tokens": 4, **body})
    answer = http.post("/v1/messages", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert words in answer.json()["error"]["message"]


def test_the_client_raises_its_own_exceptions(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        ask(claude, model="claude")
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.count_tokens(model="small", messages=[{"role": "user", "content": [{"type": "document"}]}])  # type: ignore[list-item]


def test_a_failure_in_a_begun_stream_is_an_event(http: httpx.Client) -> None:
    body = {"model": "small", "messages": HELLO, "max_tokens": 900, "ignore_eos": True, "timeout": 0.4, "stream": True}
    lines = [line for line in http.post("/v1/messages", json=body).text.split("\n") if line]
    assert lines[-2] == "event: error"
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "timeout_error"


def test_unread_fields_are_named(http: httpx.Client) -> None:
    body = {"model": "small", "messages": HELLO, "max_tokens": 1, "odd": 1, "metadata": {"user_id": "u"}}
    assert http.post("/v1/messages", json=body).headers["x-waver-ignored"] == "odd"
