# /// script
# requires-python = ">=3.11"
# dependencies = ["haystack-ai==3.4.1"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""Haystack: its generator and embedders over OpenAI's API, with a tool and a schema."""

from __future__ import annotations

from typing import Any, Literal

from harness import CITIES, EMBEDDER, HELLO, KEY, MODEL, PARAMETERS, QUESTION, V1, check, run, weather
from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import Tool
from haystack.utils import Secret
from pydantic import BaseModel

KEYED = Secret.from_token(KEY)
forecast = Tool(name="weather", description="Tell the weather.", parameters=PARAMETERS, function=weather)
required = {"tool_choice": "required", "max_completion_tokens": 64}


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]


def model(**more: Any) -> Any:
    return OpenAIChatGenerator(api_key=KEYED, model=MODEL, api_base_url=V1, max_retries=0, timeout=300, **more)


def ask(text: str, **more: Any) -> Any:
    return model(**more).run([ChatMessage.from_user(text)])["replies"][0]


@check
def text() -> None:
    assert ask(HELLO, generation_kwargs={"max_completion_tokens": 16}).text


@check
def stream() -> None:
    pieces = list[StreamingChunk]()
    told = ask(HELLO, generation_kwargs={"max_completion_tokens": 16}, streaming_callback=pieces.append)
    assert "".join(piece.content for piece in pieces) == told.text


@check
def tools() -> None:
    made = ask(QUESTION, tools=[forecast], generation_kwargs=required)
    assert made.tool_calls[0].arguments["city"] in CITIES


@check
def tool_loop() -> None:
    made = ask(QUESTION, tools=[forecast], generation_kwargs=required)
    (call,) = made.tool_calls
    history = [ChatMessage.from_user(QUESTION), made, ChatMessage.from_tool("sunny", origin=call)]
    more = {"tool_choice": "none", "max_completion_tokens": 16}
    assert model(tools=[forecast], generation_kwargs=more).run(history)["replies"][0].text


@check
def structured() -> None:
    assert Place.model_validate_json(ask(QUESTION, generation_kwargs={"response_format": Place}).text)


@check
def embeddings() -> None:
    made = OpenAITextEmbedder(api_key=KEYED, model=EMBEDDER, api_base_url=V1).run("one")
    assert len(made["embedding"]) == 384


if __name__ == "__main__":
    run()
