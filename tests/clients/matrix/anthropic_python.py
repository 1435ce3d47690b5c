# /// script
# requires-python = ">=3.11"
# dependencies = ["anthropic==2.14.0"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""Anthropic's client for Python, at `/v1/messages`."""

from __future__ import annotations

from typing import Any

import anthropic
from harness import CITIES, HELLO, KEY, MODEL, PARAMETERS, QUESTION, ROOT, TOO_LONG, check, refusal, run

client = anthropic.Anthropic(base_url=ROOT, api_key=KEY, max_retries=0)
TOOLS: Any = [{"name": "weather", "input_schema": PARAMETERS}]


def messages(text: str = HELLO) -> Any:
    return [{"role": "user", "content": text}]


@check
def text() -> None:
    answer = client.messages.create(model=MODEL, messages=messages(), max_tokens=16)
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert client.messages.count_tokens(model=MODEL, messages=messages()).input_tokens == answer.usage.input_tokens


@check
def stream() -> None:
    with client.messages.stream(model=MODEL, messages=messages(), max_tokens=16) as events:
        assert "".join(events.text_stream) == events.get_final_text()


@check
def tools() -> None:
    choice: Any = {"type": "any"}
    ask: Any = {"model": MODEL, "messages": messages(QUESTION), "tools": TOOLS, "max_tokens": 100}
    made = client.messages.create(**ask, tool_choice=choice)
    assert made.stop_reason == "tool_use"
    (call,) = (part for part in made.content if part.type == "tool_use")
    assert call.input["city"] in CITIES
    with client.messages.stream(**ask, tool_choice=choice) as events:
        assert events.get_final_message().stop_reason == "tool_use"


@check
def tool_loop() -> None:
    ask: Any = {"model": MODEL, "tools": TOOLS, "max_tokens": 100}
    made = client.messages.create(**ask, messages=messages(QUESTION), tool_choice={"type": "any"})
    (call,) = (part for part in made.content if part.type == "tool_use")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}
    history: Any = [*messages(QUESTION), {"role": "assistant", "content": made.content}, result]
    told = client.messages.create(**ask, messages=history, tool_choice={"type": "none"})
    assert told.content[0].type == "text"


@check
def overflow() -> None:
    error = refusal(lambda: client.messages.create(model=MODEL, messages=messages(TOO_LONG), max_tokens=16))
    assert isinstance(error, anthropic.BadRequestError)


if __name__ == "__main__":
    run()
