# /// script
# requires-python = ">=3.11"
# dependencies = ["smolagents[openai]==1.26.0"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""smolagents: its model over OpenAI's API, with a tool."""

from __future__ import annotations

import json

from harness import CITIES, HELLO, KEY, MODEL, QUESTION, V1, check, run, weather
from smolagents import OpenAIServerModel, tool

model = OpenAIServerModel(model_id=MODEL, api_base=V1, api_key=KEY, max_tokens=100)
forecast = tool(weather)
ASKED = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]


@check
def text() -> None:
    assert model.generate([{"role": "user", "content": [{"type": "text", "text": HELLO}]}]).content


@check
def stream() -> None:
    pieces = list(model.generate_stream([{"role": "user", "content": [{"type": "text", "text": HELLO}]}]))
    assert "".join(piece.content or "" for piece in pieces)


@check
def tools() -> None:
    made = model.generate(ASKED, tools_to_call_from=[forecast])
    assert made.tool_calls
    arguments = made.tool_calls[0].function.arguments
    assert "city" in (json.loads(arguments) if isinstance(arguments, str) else arguments)
    assert CITIES


if __name__ == "__main__":
    run()
