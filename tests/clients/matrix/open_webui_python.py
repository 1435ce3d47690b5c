# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["open-webui==0.12.4"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""Open WebUI's server, asked through its own API; its environment takes 7 GB."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from harness import CITIES, EMBEDDER, HELLO, KEY, MODEL, PARAMETERS, QUESTION, V1, check, run, serving

START = 600.0
TOOL = '''
class Tools:
    def weather(self, city: str) -> str:
        """
        Tell the weather in a city.
        :param city: Rome or Oslo
        """
        return f"It is sunny in {city}."
'''
FILTER = '''
class Filter:
    def request(self, body: dict) -> dict:
        """Leave a model the choice once a tool has answered it."""
        if any(message["role"] == "tool" for message in body["messages"]):
            body["tool_choice"] = "none"
        return body
'''
SETTINGS = {
    "WEBUI_AUTH": "False", "OPENAI_API_BASE_URL": V1, "OPENAI_API_KEY": KEY, "ENABLE_OLLAMA_API": "False",
    "RAG_EMBEDDING_ENGINE": "openai", "HF_HUB_OFFLINE": "1", "WEBUI_SECRET_KEY": "none",
    "ENABLE_VERSION_UPDATE_CHECK": "False",
}  # fmt: skip
OFFERED = {"tool_ids": ["forecast"], "params": {"function_calling": "native"}, "tool_choice": "required"}
_http: list[httpx.Client] = []


@contextmanager
def signed_in() -> Iterator[httpx.Client]:
    """Run the server in a folder of its own, and yield a client that is signed in."""
    command = [str(Path(sys.executable).with_name("open-webui")), "serve"]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(command, Path(folder), "/health", {**SETTINGS, "DATA_DIR": folder}, START) as url,
        httpx.Client(base_url=url, timeout=600) as http,
    ):
        token = http.post("/api/v1/auths/signin", json={"email": "", "password": ""}).json()["token"]
        http.headers["authorization"] = f"Bearer {token}"
        assert MODEL in [model["id"] for model in http.get("/api/models").json()["data"]]
        yield http


def ask(text: str = HELLO, **options: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 32, **options}
    return _http[0].post("/api/chat/completions", json=body).raise_for_status()


@check
def text() -> None:
    assert ask(stream=False).json()["choices"][0]["message"]["content"]


@check
def stream() -> None:
    lines = [line for line in ask(stream=True).text.splitlines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line[6:]).get("choices", ())]
    assert "".join(choice["delta"].get("content") or "" for choice in choices)


@check
def tools() -> None:
    """Offer a tool of Open WebUI's own making to the model, which a script then has to run."""
    tool = {"id": "forecast", "name": "forecast", "meta": {"description": "weather"}, "content": TOOL}
    _http[0].post("/api/v1/tools/create", json=tool).raise_for_status()
    made = ask(QUESTION, stream=False, **OFFERED).json()["choices"][0]
    assert made["finish_reason"] == "tool_calls"
    function = made["message"]["tool_calls"][0]["function"]
    assert function["name"] == "weather"
    assert "city" in json.loads(function["arguments"])


@check
def tool_loop() -> str:
    """Begin a chat as Open WebUI's page does: its server runs the tool and asks the model again. It would hold a model
    to the choice of a tool each time, so a filter of its own takes that away after the first."""
    function = {"id": "once", "name": "once", "meta": {"description": "one call"}, "content": FILTER}
    _http[0].post("/api/v1/functions/create", json=function).raise_for_status()
    for switch in ("toggle", "toggle/global"):
        _http[0].post(f"/api/v1/functions/id/once/{switch}").raise_for_status()
    asked = {"id": "asked", "role": "user", "content": QUESTION, "parentId": None, "childrenIds": [], "timestamp": 0}
    chat = {"parent_id": None, "user_message": asked, "id": "answer", "session_id": "script", "background_tasks": {}}
    begun = ask(QUESTION, stream=True, **OFFERED, **chat).json()
    message = finished(begun["chat_id"])
    assert "error" not in message, message["error"]
    made = message["output"]
    assert [item["type"] for item in made] == ["function_call", "function_call_output", "message"], made
    city = json.loads(made[0]["arguments"])["city"]
    assert made[1]["output"][0]["text"] == f"It is sunny in {city}."
    assert message["content"]
    return f"{city}, and then: {message['content'][:80]}"


def finished(chat: str) -> Any:
    """Return the answer of a chat once it has been written, as Open WebUI keeps it."""
    until = time.monotonic() + START
    while time.monotonic() < until:
        kept = _http[0].get(f"/api/v1/chats/{chat}").raise_for_status().json()["chat"]
        message = kept["history"]["messages"].get("answer", {})
        if message.get("done") or message.get("error"):
            return message
        time.sleep(0.5)
    raise AssertionError("the chat did not end")


@check
def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS, "strict": True}}
    made = ask(QUESTION, stream=False, response_format=form).json()["choices"][0]["message"]["content"]
    assert json.loads(made)["city"] in CITIES


@check
def embeddings() -> None:
    made = _http[0].post("/api/embeddings", json={"model": EMBEDDER, "input": ["one"]}).raise_for_status().json()
    assert len(made["data"][0]["embedding"]) == 384


if __name__ == "__main__":
    with signed_in() as http:
        _http.append(http)
        run()
