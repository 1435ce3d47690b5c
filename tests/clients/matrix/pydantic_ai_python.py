# /// script
# requires-python = ">=3.11"
# dependencies = ["pydantic-ai-slim[openai]==2.68.0"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""pydantic-ai: text, streams, typed output by a tool and by a schema, and a tool in a loop."""

from __future__ import annotations

from typing import Literal

from harness import HELLO, KEY, MODEL, QUESTION, V1, check, run, weather
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=V1, api_key=KEY)
model = OpenAIChatModel(MODEL, provider=provider, settings={"max_tokens": 64})


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]


@check
def text() -> None:
    assert Agent(model).run_sync(HELLO).output


@check
async def stream() -> None:
    async with Agent(model).run_stream(HELLO) as streamed:
        pieces = [piece async for piece in streamed.stream_text(delta=True)]
    assert "".join(pieces)


@check
def tools() -> None:
    assert Agent(model, output_type=ToolOutput(Place)).run_sync(QUESTION).output.city in ("Rome", "Oslo")


@check
def tool_loop() -> None:
    made = Agent(model, tools=[weather], output_type=ToolOutput(Place)).run_sync(QUESTION)
    assert made.output.city in ("Rome", "Oslo")


@check
def structured() -> None:
    assert Agent(model, output_type=NativeOutput(Place)).run_sync(QUESTION).output.city in ("Rome", "Oslo")


@check
def responses() -> None:
    through = OpenAIResponsesModel(MODEL, provider=provider, settings={"max_tokens": 64})
    assert Agent(through).run_sync(HELLO).output


if __name__ == "__main__":
    run()
