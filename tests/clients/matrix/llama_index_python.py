# /// script
# requires-python = ">=3.11"
# dependencies = ["llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.*"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""LlamaIndex with its OpenAI-like model and embeddings."""

from __future__ import annotations

from typing import Literal

from harness import CITIES, EMBEDDER, HELLO, KEY, MODEL, QUESTION, V1, check, run, weather
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

model = OpenAILike(
    model=MODEL, api_base=V1, api_key=KEY, is_chat_model=True, is_function_calling_model=True, max_tokens=64,
    context_window=4096, max_retries=0,
)  # fmt: skip
forecast = FunctionTool.from_defaults(weather)


class Place(BaseModel):
    """A city."""

    city: Literal["Rome", "Oslo"]


@check
def text() -> None:
    assert model.complete(HELLO).text


@check
def stream() -> None:
    assert [piece.text for piece in model.stream_complete(HELLO)][-1]


@check
def tools() -> None:
    program = FunctionCallingProgram.from_defaults(
        output_cls=Place, prompt_template_str=QUESTION, llm=model, tool_required=True
    )
    made = program()
    assert made.city in CITIES  # type: ignore[union-attr]


@check
def tool_loop() -> None:
    answer = model.chat_with_tools([forecast], user_msg=QUESTION, tool_required=True)
    (call,) = model.get_tool_calls_from_response(answer)
    assert "Rome" in str(forecast(**call.tool_kwargs)) or call.tool_kwargs


@check
def structured() -> None:
    assert model.as_structured_llm(Place).complete(QUESTION).raw.city in CITIES  # type: ignore[union-attr]


@check
def embeddings() -> None:
    embedder = OpenAILikeEmbedding(model_name=EMBEDDER, api_base=V1, api_key=KEY)
    assert [len(each) for each in embedder.get_text_embedding_batch(["one", "two"])] == [384, 384]


if __name__ == "__main__":
    run()
