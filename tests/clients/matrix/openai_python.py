# /// script
# requires-python = ">=3.11"
# dependencies = ["openai==3.57.0"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""OpenAI's own client for Python."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from harness import (
    CITIES,
    EMBEDDER,
    HELLO,
    KEY,
    MODEL,
    OVERFLOW,
    QUESTION,
    TOO_LONG,
    TOOLS,
    V1,
    check,
    refusal,
    run,
)
from pydantic import BaseModel

client = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]


def messages(text: str = HELLO) -> Any:
    return [{"role": "user", "content": text}]


@check
def text() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=messages(), max_tokens=16)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens > answer.usage.completion_tokens > 0


@check
def stream() -> None:
    with client.chat.completions.stream(model=MODEL, messages=messages(), max_tokens=16) as events:
        told = list(events)
    pieces = [event.delta for event in told if event.type == "content.delta"]
    # The final completion is not asked for: the client refuses to parse one that `max_tokens` ended.
    assert ["".join(pieces)] == [event.content for event in told if event.type == "content.done"]


@check
def tools() -> None:
    ask: Any = {"model": MODEL, "messages": messages(QUESTION), "tools": TOOLS, "tool_choice": "required"}
    made = client.chat.completions.create(**ask).choices[0]
    assert made.finish_reason == "tool_calls"
    assert made.message.tool_calls
    assert json.loads(made.message.tool_calls[0].function.arguments)["city"] in CITIES  # type: ignore[union-attr]
    pieces = [c.choices[0].delta for c in client.chat.completions.create(**ask, stream=True) if c.choices]
    calls = [call for delta in pieces for call in delta.tool_calls or [] if call.index == 0]
    assert json.loads("".join(call.function.arguments or "" for call in calls))["city"] in CITIES


@check
def tool_loop() -> None:
    asked = messages(QUESTION)
    ask: Any = {"model": MODEL, "tools": TOOLS, "max_tokens": 40}
    made = client.chat.completions.create(**ask, messages=asked, tool_choice="required").choices[0].message
    assert made.tool_calls
    result = {"role": "tool", "tool_call_id": made.tool_calls[0].id, "content": "sunny"}
    told = client.chat.completions.create(**ask, messages=[*asked, made, result], tool_choice="none")
    assert told.choices[0].message.content


@check
def structured() -> None:
    made = client.chat.completions.parse(model=MODEL, messages=messages(QUESTION), response_format=Place)
    assert made.choices[0].message.parsed is not None


@check
def embeddings() -> None:
    made = client.embeddings.create(model=EMBEDDER, input=["one", "two"])
    assert [len(each.embedding) for each in made.data] == [384, 384]


@check
def responses() -> None:
    made = client.responses.parse(model=MODEL, input=QUESTION, text_format=Place)
    assert made.output_parsed is not None
    with client.responses.stream(model=MODEL, input=HELLO, max_output_tokens=16) as events:
        kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


@check
def overflow() -> None:
    error = refusal(lambda: client.chat.completions.create(model=MODEL, messages=messages(TOO_LONG)))
    assert OVERFLOW in str(error)
    assert getattr(error, "code", None) == "context_length_exceeded"


if __name__ == "__main__":
    run()
