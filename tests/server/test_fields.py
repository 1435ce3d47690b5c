"""No field is ignored in silence: it works, is refused by name, or is named in the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def refused(answer: httpx.Response, param: str) -> None:
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert param.partition(".")[0] in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 3),
        ("suffix", "."),
        ("skip_special_tokens", False),
        ("prompt_logprobs", 1),
        ("prompt_logprobs", 0),
        ("use_beam_search", True),
        ("priority", 1),
        ("documents", [{"text": "a"}]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("logits_processors", ["os.system"]),
        ("vllm_xargs", {"a": 1}),
        ("guided_whitespace_pattern", " *"),
        ("stream_options", {"include_usage": True}),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(http: httpx.Client, path: str, name: str, value: Any) -> None:
    prompt = {"messages": HELLO} if path == CHAT else {"prompt": "1 + 1"}
    refused(http.post(path, json={**prompt, "max_tokens": 1, name: value}), name)


def test_chat_has_no_echo(http: httpx.Client) -> None:
    refused(http.post(CHAT, json={"messages": HELLO, "echo": True}), "echo")


def test_values_that_ask_for_nothing_are_taken(http: httpx.Client) -> None:
    body = {
        "best_of": 1, "skip_special_tokens": True, "spaces_between_special_tokens": False, "use_beam_search": False,
        "length_penalty": 1.0, "priority": 0, "modalities": ["text"], "documents": None, "echo": False,
        "stream_options": {"include_usage": False}, "user": "u", "metadata": {"a": "b"}, "store": False,
    }  # fmt: skip
    answer = http.post(CHAT, json={"messages": HELLO, "max_tokens": 1, **body})
    assert answer.status_code == 200, answer.text
    assert "ignored" not in answer.json()["waver"]
    assert "x-waver-ignored" not in answer.headers


UNKNOWN = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": {}}], "mood": "good"}],
    "colour": [1],
    "naïve\n": 1,
    "chat_template_kwargs": {"no_such_variable": True},
    "stop": ["x<|im_end|>"],
    "max_tokens": 2,
}
NAMES = [
    "colour", "naïve\n", "messages[0].mood", "messages[0].content[0].cache_control",
    "chat_template_kwargs.no_such_variable",
]  # fmt: skip


def test_unknown_fields_are_named_at_every_depth(running: Any, http: httpx.Client) -> None:
    control = next(iter(running.runtime.engines["small"].tokens.control_tokens))
    body = {**UNKNOWN, "stop": [f"x{control}"]}
    answer = http.post(CHAT, json=body)
    assert sorted(answer.json()["waver"]["ignored"]) == sorted([*NAMES, "stop[0]"])
    assert set(answer.headers["x-waver-ignored"].split(", ")) == {*NAMES, "stop[0]"} - {"naïve\n"} | {"na?ve?"}
    streamed = http.post(CHAT, json={**body, "stream": True, "stream_options": {"include_usage": True, "odd": 1}})
    assert "stream_options.odd" in streamed.headers["x-waver-ignored"]
    chunks = [json.loads(line[6:]) for line in streamed.text.split("\n") if line.startswith("data: {")]
    *others, finishing, usage = chunks
    assert finishing["waver"]["ignored"] == usage["waver"]["ignored"]
    assert "stream_options.odd" in usage["waver"]["ignored"]
    assert not any("waver" in chunk for chunk in others)


def test_a_strict_server_refuses_unknown_fields(start: Callable[..., Any]) -> None:
    running = start(strict=True)
    with running.http() as http:
        assert http.post(CHAT, json={"messages": HELLO, "max_tokens": 1, "user": "u"}).status_code == 200
        refused(http.post(CHAT, json={"messages": HELLO, "colour": 1}), "colour")
        nested = [{"role": "user", "content": "hello", "mood": 1}]
        refused(http.post(CHAT, json={"messages": nested}), "messages[0].mood")
        refused(http.post("/v1/tokenize", json={"prompt": "a", "colour": 1}), "colour")


@pytest.mark.parametrize("name", ["filters", "where", "k", "limit"])
def test_a_search_refuses_unknown_fields(http: httpx.Client, name: str) -> None:
    refused(http.post("/v1/collections/none/search", json={"query": "x", name: 1}), name)


def test_collections_and_documents_refuse_unknown_fields(http: httpx.Client) -> None:
    refused(http.post("/v1/collections", json={"name": "closed", "chunk_size": 10}), "chunk_size")
    assert http.post("/v1/collections", json={"name": "closed"}).status_code == 200
    document = {"id": "a", "text": "b", "metdata": {"lang": "en"}}
    answer = http.post("/v1/collections/closed/documents", json={"documents": [document]})
    refused(answer, "documents[0].metdata")
    assert http.delete("/v1/collections/closed").status_code == 200


def test_max_completion_tokens_bounds_text_completions(http: httpx.Client) -> None:
    answer = http.post(TEXT, json={"prompt": "1 + 1", "max_completion_tokens": 3, "ignore_eos": True})
    assert answer.json()["usage"]["completion_tokens"] == 3


def test_a_seed_of_minus_one_is_random(client: openai.OpenAI) -> None:
    options: Any = {"model": "small", "messages": HELLO, "max_tokens": 16, "temperature": 2.0, "seed": -1}
    texts = {client.chat.completions.create(**options).choices[0].message.content for _ in range(6)}
    assert len(texts) > 1


def test_a_prompt_is_truncated_where_asked(http: httpx.Client, running: Any) -> None:
    text = "one two three four five six seven eight nine ten"
    ids = running.runtime.engines["small"].tokens.encode(text)
    options = {"model": "small", "max_tokens": 1, "return_token_ids": True}
    for side, kept in (("left", ids[-4:]), ("right", ids[:4])):
        body = {"prompt": text, "truncate_prompt_tokens": 4, "truncation_side": side, **options}
        answer = http.post(TEXT, json=body).json()
        assert answer["choices"][0]["prompt_token_ids"] == kept
        assert answer["usage"]["prompt_tokens"] == 4
    long = [ids[1]] * 3000
    assert http.post(TEXT, json={"prompt": long, **options}).json()["error"]["code"] == "context_length_exceeded"
    answer = http.post(TEXT, json={"prompt": long, "truncate_prompt_tokens": -1, **options, "max_tokens": 24}).json()
    assert answer["usage"]["prompt_tokens"] == 1000


def test_token_ids_are_returned_whole_and_streamed(http: httpx.Client, running: Any) -> None:
    tokens = running.runtime.engines["small"].tokens
    body = {"messages": HELLO, "model": "waver/coin", "max_tokens": 12, "seed": 4, "n": 2, "return_token_ids": True}
    whole = http.post(CHAT, json=body).json()
    streamed: dict[int, list[int]] = {0: [], 1: []}
    prompts = []
    for line in http.post(CHAT, json={**body, "stream": True}).text.split("\n"):
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            prompts += [chunk["prompt_token_ids"]] if "prompt_token_ids" in chunk else []
            for choice in chunk["choices"]:
                streamed[choice["index"]] += choice.get("token_ids", [])
    assert whole["prompt_token_ids"] == prompts[0]
    assert tokens.decode(whole["prompt_token_ids"])
    for choice in whole["choices"]:
        assert streamed[choice["index"]] == choice["token_ids"]
        assert tokens.decode(choice["token_ids"]).rstrip("\ufffd") == choice["message"]["content"]
    assert sum(len(choice["token_ids"]) for choice in whole["choices"]) == whole["usage"]["completion_tokens"]


def test_tokens_are_named_by_their_ids(http: httpx.Client) -> None:
    options = {"max_tokens": 4, "seed": 1, "return_tokens_as_token_ids": True, "return_token_ids": True}
    chat = http.post(CHAT, json={"messages": HELLO, "logprobs": True, "top_logprobs": 2, **options}).json()
    text = http.post(TEXT, json={"prompt": "1 + 1", "logprobs": 2, "trace": True, **options}).json()["choices"][0]
    (choice,) = chat["choices"]
    for entry, token in zip(choice["logprobs"]["content"], choice["token_ids"], strict=False):
        assert entry["token"] == f"token_id:{token}"
        assert all(other["token"].startswith("token_id:") for other in entry["top_logprobs"])
    assert text["logprobs"]["tokens"] == [f"token_id:{token}" for token in text["token_ids"]]
    assert all(name.startswith("token_id:") for top in text["logprobs"]["top_logprobs"] for name in top)


def test_stop_reason_and_the_stop_string_itself(client: openai.OpenAI, running: Any) -> None:
    options: Any = {"model": "small", "messages": HELLO, "max_tokens": 60, "seed": 11}
    plain = client.chat.completions.create(**options).choices[0]
    text = plain.message.content or ""
    assert plain.stop_reason is None
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    cut = client.chat.completions.create(**options, stop=[stop]).choices[0]
    assert (cut.stop_reason, cut.message.content) == (stop, text[: text.index(stop)])
    kept = client.chat.completions.create(**options, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == text[: text.index(stop)] + stop
    ids = client.chat.completions.create(**options, extra_body={"return_token_ids": True}).choices[0].token_ids
    one = client.chat.completions.create(**options, extra_body={"stop_token_ids": [ids[5]]}).choices[0]
    assert (one.finish_reason, one.stop_reason) == ("stop", ids[5])
    assert client.chat.completions.create(**options).system_fingerprint == running.runtime.fingerprint


def test_a_control_token_as_a_stop_string_ends_the_answer(http: httpx.Client, running: Any) -> None:
    known = running.runtime.engines["small"].tokens.control_tokens
    word, token = next((word, i) for word, i in known.items())
    body = {
        "messages": HELLO, "model": "small", "max_tokens": 30, "ignore_eos": True, "logit_bias": {str(token): 100},
        "stop": [word, "\n\n\n"],
    }  # fmt: skip
    choice = http.post(CHAT, json=body).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"], choice["message"]["content"]) == ("stop", token, "")


def test_allowed_tokens_and_bad_words_hold_on_both_engines_and_across_hand_overs(http: httpx.Client) -> None:
    body = {"messages": HELLO, "model": "waver/coin", "max_tokens": 40, "seed": 2, "return_token_ids": True}
    free = http.post(CHAT, json=body).json()["choices"][0]["token_ids"]
    allowed = sorted({*free[:10], *range(40, 60)})
    held = http.post(CHAT, json={**body, "allowed_token_ids": allowed, "ignore_eos": True}).json()
    assert len(held["waver"]["tokens"]) == 2
    assert set(held["choices"][0]["token_ids"]) <= set(allowed)
    options = {**body, "allowed_token_ids": [*range(300, 304)], "temperature": 0, "model": "small"}
    text = http.post(CHAT, json=options).json()["choices"][0]["message"]["content"]
    word = next(word for word in text.split() if len(word) > 1)
    barred = http.post(CHAT, json={**options, "bad_words": [word]}).json()["choices"][0]["message"]["content"]
    assert text.count(word) > 0
    assert word not in barred.split()
    refused(http.post(CHAT, json={**body, "allowed_token_ids": [10**6]}), "allowed_token_ids")
    refused(http.post(CHAT, json={**body, "bad_words": [" "]}), "bad_words[0]")
