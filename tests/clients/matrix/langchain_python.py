# /// script
# requires-python = ">=3.11"
# dependencies = ["langchain-openai==1.7.4", "langchain==1.*"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""LangChain with `langchain-openai`: chat, tools, structured output, embeddings, and an agent."""

from __future__ import annotations

from typing import Any, Literal

from harness import CITIES, EMBEDDER, HELLO, KEY, MODEL, QUESTION, TOO_LONG, V1, check, refusal, run, weather
from langchain_core.exceptions import ContextOverflowError
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

model = ChatOpenAI(base_url=V1, api_key=SecretStr(KEY), model=MODEL, max_retries=0, max_completion_tokens=64)
forecast = tool(weather)


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]


@check
def text() -> None:
    answer = model.invoke(HELLO)
    assert answer.content
    assert answer.usage_metadata is not None


@check
def stream() -> None:
    whole: Any = None
    for piece in model.stream(HELLO, stream_usage=True):
        whole = piece if whole is None else whole + piece
    assert whole.content
    assert whole.usage_metadata["output_tokens"] > 0


@check
def tools() -> None:
    made: Any = model.bind_tools([Place], tool_choice="any").invoke(QUESTION)
    assert made.tool_calls[0]["args"]["city"] in CITIES


@check
def tool_loop() -> None:
    bound = model.bind_tools([forecast], tool_choice="any")
    made: Any = bound.invoke(QUESTION)
    result = forecast.invoke(made.tool_calls[0])
    told = model.bind_tools([forecast], tool_choice="none").invoke([("user", QUESTION), made, result])
    assert told.content


@check
def structured() -> None:
    for method in ("json_schema", "function_calling"):
        made: Any = model.with_structured_output(Place, method=method).invoke(QUESTION)  # type: ignore[arg-type]
        assert made.city in CITIES


@check
def embeddings() -> None:
    embedder = OpenAIEmbeddings(base_url=V1, api_key=SecretStr(KEY), model=EMBEDDER, check_embedding_ctx_length=False)
    assert len(embedder.embed_query("one")) == 384


@check
def responses() -> None:
    through = model.model_copy(update={"use_responses_api": True})
    assert through.invoke(HELLO).content


@check
def overflow() -> None:
    assert isinstance(refusal(lambda: model.invoke(TOO_LONG)), ContextOverflowError)


if __name__ == "__main__":
    run()
