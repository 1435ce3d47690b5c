# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm==1.110.2"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""LiteLLM's SDK."""

from __future__ import annotations

import json
from typing import Any

import litellm
from harness import CITIES, EMBEDDER, HELLO, KEY, MODEL, PARAMETERS, QUESTION, TOO_LONG, TOOLS, V1, check, refusal, run

ASK: Any = {"model": f"openai/{MODEL}", "api_base": V1, "api_key": KEY, "num_retries": 0}


def messages(text: str = HELLO) -> Any:
    return [{"role": "user", "content": text}]


@check
def text() -> None:
    assert litellm.completion(**ASK, messages=messages(), max_tokens=16).choices[0].message.content


@check
def stream() -> None:
    pieces = list(litellm.completion(**ASK, messages=messages(), max_tokens=16, stream=True))
    assert litellm.stream_chunk_builder(pieces, messages=messages()).choices[0].message.content


@check
def tools() -> None:
    made = litellm.completion(**ASK, messages=messages(QUESTION), tools=TOOLS, tool_choice="required").choices[0]
    assert made.finish_reason == "tool_calls"
    assert json.loads(made.message.tool_calls[0].function.arguments)["city"] in CITIES


@check
def tool_loop() -> None:
    made = litellm.completion(**ASK, messages=messages(QUESTION), tools=TOOLS, tool_choice="required").choices[0]
    result = {"role": "tool", "tool_call_id": made.message.tool_calls[0].id, "content": "sunny"}
    history = [*messages(QUESTION), made.message.model_dump(), result]
    told = litellm.completion(**ASK, messages=history, tools=TOOLS, tool_choice="none", max_tokens=16)
    assert told.choices[0].message.content


@check
def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS, "strict": True}}
    made = litellm.completion(**ASK, messages=messages(QUESTION), response_format=form)
    assert json.loads(made.choices[0].message.content)["city"] in CITIES


@check
def embeddings() -> None:
    made = litellm.embedding(model=f"openai/{EMBEDDER}", api_base=V1, api_key=KEY, input=["one"])
    assert len(made.data[0]["embedding"]) == 384


@check
def responses() -> None:
    assert litellm.responses(**ASK, input=HELLO, max_output_tokens=16).output


@check
def overflow() -> None:
    error = refusal(lambda: litellm.completion(**ASK, messages=messages(TOO_LONG)))
    assert isinstance(error, litellm.ContextWindowExceededError)


if __name__ == "__main__":
    run()
