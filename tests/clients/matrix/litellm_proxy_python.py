# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm[proxy]==1.108.0"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""LiteLLM's proxy in front of Waver, asked by OpenAI's SDK."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import (
    CITIES,
    EMBEDDER,
    HELLO,
    KEY,
    MODEL,
    OVERFLOW,
    PARAMETERS,
    QUESTION,
    TOO_LONG,
    TOOLS,
    V1,
    check,
    refusal,
    run,
    serving,
)
from openai import OpenAI

START = 300.0
MASTER = f"sk-{secrets.token_hex(32)}"
"""The key of the proxy."""
_client: list[OpenAI] = []


@contextmanager
def proxy() -> Iterator[str]:
    """Run a proxy of two models, and yield its address."""
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": V1, "api_key": KEY}}
        for name in (MODEL, EMBEDDER)
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(json.dumps({"model_list": models, "router_settings": {"num_retries": 0}}))
        command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config)]
        own = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": MASTER}
        with serving(command, Path(folder), "/health/liveliness", own, START) as url:
            yield url


def ask(text: str = HELLO, **options: Any) -> Any:
    given: Any = {"model": MODEL, "messages": [{"role": "user", "content": text}], **options}
    return _client[0].chat.completions.create(**given)


@check
def text() -> None:
    assert ask(max_tokens=16).choices[0].message.content


@check
def stream() -> None:
    assert "".join(piece.choices[0].delta.content or "" for piece in ask(max_tokens=16, stream=True) if piece.choices)


@check
def tools() -> None:
    made = ask(QUESTION, tools=TOOLS, tool_choice="required").choices[0]
    assert made.finish_reason == "tool_calls"
    assert json.loads(made.message.tool_calls[0].function.arguments)["city"] in CITIES


@check
def tool_loop() -> None:
    made = ask(QUESTION, tools=TOOLS, tool_choice="required").choices[0].message
    result = {"role": "tool", "tool_call_id": made.tool_calls[0].id, "content": "sunny"}
    told = [{"role": "user", "content": QUESTION}, made.model_dump(exclude_none=True), result]
    assert ask(messages=told, tools=TOOLS, tool_choice="none", max_tokens=16).choices[0].message.content


@check
def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS, "strict": True}}
    assert json.loads(ask(QUESTION, response_format=form).choices[0].message.content)["city"] in CITIES


@check
def embeddings() -> None:
    assert len(_client[0].embeddings.create(model=EMBEDDER, input=["one"]).data[0].embedding) == 384


@check
def responses() -> None:
    assert _client[0].responses.create(model=MODEL, input=HELLO, max_output_tokens=16).output_text


@check
def overflow() -> None:
    error = refusal(lambda: ask(TOO_LONG))
    assert OVERFLOW in str(error)
    assert ask(max_tokens=4).choices[0].message.content  # the deployment was not taken out for it


if __name__ == "__main__":
    with proxy() as url:
        _client.append(OpenAI(base_url=f"{url}/v1", api_key=MASTER, max_retries=0))
        run()
