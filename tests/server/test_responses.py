"""POST /v1/responses through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from waver.server.response_store import ResponseStore, StoredResponse

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.responses.create(**{"model": "waver/frugal", "input": "hello", "max_output_tokens": 24, **options})


def test_a_response_says_what_chat_says(client: openai.OpenAI) -> None:
    found = ask(client, instructions="be brief", extra_body={"seed": 3})
    messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(model="waver/frugal", messages=messages, max_tokens=24, seed=3)
    assert found.output_text == chat.choices[0].message.content
    assert chat.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    assert found.status == ("completed" if chat.choices[0].finish_reason == "stop" else "incomplete")
    assert found.instructions == "be brief"
    assert found.waver["tokens"] == chat.model_extra["waver"]["tokens"]  # type: ignore[index]
    assert (found.object, found.error, found.model) == ("response", None, "waver/frugal")


def test_a_stream_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    options = {"extra_body": {"seed": 5, "trace": True}, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = ask(client, **options)
    with client.responses.stream(model="waver/frugal", input="hello", max_output_tokens=24, **options) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events if event.type != "keepalive"] == sorted(
        event.sequence_number for event in events
    )
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] == f"response.{whole.status}"
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == final.output_text == whole.output_text
    assert final.usage == whole.usage
    one, other = (each.output[0].content[0].logprobs for each in (whole, final))
    assert [entry.token for entry in one] == [entry.token for entry in other]
    assert len(one[0].top_logprobs) == 2
    assert [step["id"] for step in final.waver["trace"]] == [step["id"] for step in whole.waver["trace"]]


def test_the_wire_has_named_events_and_no_done(http: httpx.Client) -> None:
    body = {"model": "small", "input": "hello", "max_output_tokens": 2, "stream": True}
    lines = http.post("/v1/responses", json=body).text.split("\n")
    events = [line for line in lines if line]
    assert all(event.startswith(("event: ", "data: ")) for event in events)
    for name, data in zip(events[::2], events[1::2], strict=True):
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")


def test_a_conversation_goes_on_from_its_previous_response(client: openai.OpenAI) -> None:
    first = ask(client, instructions="be brief", extra_body={"seed": 1})
    second = ask(client, input="and now?", previous_response_id=first.id, extra_body={"seed": 2})
    messages: Any = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and now?"},
    ]
    chat = client.chat.completions.create(model="waver/frugal", messages=messages, max_tokens=24, seed=2)
    assert second.output_text == chat.choices[0].message.content
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == first.output_text
    stream = client.responses.create(model="small", input="hi", max_output_tokens=2, stream=True)
    last = list(stream)[-1].response
    assert client.responses.retrieve(last.id).id == last.id
    client.responses.delete(first.id)
    unstored = ask(client, store=False)
    for name in (first.id, unstored.id, "resp_none"):
        with pytest.raises(openai.NotFoundError, match="kept in memory"):
            ask(client, previous_response_id=name)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(name)


def test_the_store_is_bounded_and_knows_owners() -> None:
    store = ResponseStore(2, 2100)
    for name in "abc":
        store.put("one", StoredResponse({"id": name}, ()))
    assert [store.get("one", name) is not None for name in "abc"] == [False, True, True]
    assert store.get("other", "b") is None
    store.put("one", StoredResponse({"id": "d", "text": "x" * 2070}, ()))
    assert [store.get("one", name) is not None for name in "bcd"] == [False, False, True]
    store.put("one", StoredResponse({"id": "e", "text": "x" * 3000}, ()))
    assert store.get("one", "e") is None
    store.put("one", StoredResponse({"id": "f"}, ()))
    store.discard("one", "f")
    assert store.get("one", "f") is None


def test_items_become_messages(client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hel"},
                                                         {"type": "input_text", "text": "lo"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "yes", "annotations": []}]},
        {"role": "user", "content": "so?"},
    ]  # fmt: skip
    found = ask(client, input=items, extra_body={"seed": 4})
    messages: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "so?"},
    ]
    chat = client.chat.completions.create(model="waver/frugal", messages=messages, max_tokens=24, seed=4)
    assert found.output_text == chat.choices[0].message.content


def test_a_format_is_kept(client: openai.OpenAI) -> None:
    wanted: Any = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    found = ask(client, model="small", text=wanted, max_output_tokens=64)
    assert json.loads(found.output_text)["a"] in (1, 2)
    assert found.text.format.type == "json_schema"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "user", "content": "\ud800"}]}, "input[1].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": "hello " * 3000}, "input"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"temperature": 9}, "temperature"),
        ({"reasoning": {"effort": "bogus"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"$ref": "#"}}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"n": 2}, "n"),
        ({"policy": [{"name": "nope"}]}, "policy[0].name"),
        ({"best_of": 2}, "best_of"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_cannot_be_is_refused_by_its_own_name(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    body = body if not body or "input" in body else {"input": "hello", **body}
    content = json.dumps({"model": "small", **body})
    answer = http.post("/v1/responses", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert "messages" not in answer.json()["error"]["message"]


def test_what_is_ignored_is_named(http: httpx.Client) -> None:
    body = {
        "model": "small", "input": "hello", "max_output_tokens": 1, "text": {"verbosity": "low"},
        "include": ["reasoning.encrypted_content"], "odd": 1,
    }  # fmt: skip
    answer = http.post("/v1/responses", json=body)
    assert answer.json()["waver"]["ignored"] == ["text.verbosity", "include[0]", "odd"]
    assert answer.headers["x-waver-ignored"] == "text.verbosity, include[0], odd"


def test_a_failure_in_a_begun_stream_is_an_event(client: openai.OpenAI) -> None:
    extra = {"ignore_eos": True, "timeout": 0.4}
    events = list(ask(client, max_output_tokens=900, stream=True, extra_body=extra))
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert "deadline" in events[-1].response.error.message
