# /// script
# requires-python = ">=3.11"
# dependencies = ["openai-agents==0.24.0"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""OpenAI's Agents SDK: an agent with a function tool, over chat completions and over responses."""

from __future__ import annotations

from typing import Literal

from agents import (
    Agent,
    AsyncOpenAI,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from harness import HELLO, KEY, MODEL, QUESTION, V1, check, run, weather
from pydantic import BaseModel

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0)
chat = OpenAIChatCompletionsModel(MODEL, client)
forecast = function_tool(weather)


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]


@check
async def text() -> None:
    assert (
        await Runner.run(Agent(name="a", model=chat, model_settings=ModelSettings(max_tokens=16)), HELLO)
    ).final_output


@check
async def stream() -> None:
    result = Runner.run_streamed(Agent(name="a", model=chat, model_settings=ModelSettings(max_tokens=16)), HELLO)
    kinds = [event.type async for event in result.stream_events()]
    assert "raw_response_event" in kinds
    assert result.final_output


async def loop(model: Model) -> None:
    """Let an agent call a tool first, and then answer."""
    settings = ModelSettings(tool_choice="required", max_tokens=64)
    agent = Agent(name="a", model=model, tools=[forecast], model_settings=settings)
    made = await Runner.run(agent, QUESTION, max_turns=4)
    kinds = [item.type for item in made.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"], kinds


@check
async def tool_loop() -> None:
    await loop(chat)


@check
async def structured() -> None:
    made = await Runner.run(Agent(name="a", model=chat, output_type=Place), QUESTION)
    assert made.final_output.city in ("Rome", "Oslo")


@check
async def responses() -> None:
    await loop(OpenAIResponsesModel(MODEL, client))


if __name__ == "__main__":
    run()
