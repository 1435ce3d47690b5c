"""POST /v1/completions: the older API that evaluation harnesses and load generators still speak."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": "small", "prompt": "12 + 7 =", "max_tokens": 12, **options})


def stream(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", "/v1/completions", json={"stream": True, "model": "small", **body}) as response:
        assert response.status_code == 200, response.read()
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert max(map(len, events)) < 64 * 1024
    return [json.loads(event) for event in events[:-1]]


@pytest.mark.parametrize("prompt", ["a b", ["a b", "c"], [5, 6, 7], [[5, 6], [7, 8, 9]]])
def test_prompts_come_in_four_forms(client: openai.OpenAI, prompt: Any) -> None:
    several = not isinstance(prompt, str) and not isinstance(prompt[0], int)
    answer = complete(client, prompt=prompt, n=2)
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == list(range(2 * (len(prompt) if several else 1)))
    assert sum(answer.waver["tokens"].values()) == answer.usage.completion_tokens


def test_choices_are_numbered_prompt_by_prompt(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=["aa", "bb"], n=2, echo=True)
    assert [choice.text[:2] for choice in answer.choices] == ["aa", "aa", "bb", "bb"]


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("model", ["small", "waver/frugal"])
def test_trap_30_lm_eval(client: openai.OpenAI, max_tokens: int, model: str) -> None:
    prompts = [[5, 60, 70, 300], [9, 8, 7]]
    answer = complete(client, model=model, prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(prompt) + max_tokens
        assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
        taken = zip(logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True)
        for token, logprob, alternatives in taken:
            assert alternatives[token] == pytest.approx(logprob)
            assert 1 <= len(alternatives) <= 2
        if max_tokens:
            assert logprobs.tokens[-1] == max(logprobs.top_logprobs[-1], key=logprobs.top_logprobs[-1].get)
    assert answer.usage.completion_tokens == max_tokens * len(prompts)


def test_text_offsets_point_at_the_tokens(client: openai.OpenAI) -> None:
    choice = complete(client, echo=True, logprobs=0, seed=1).choices[0]
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        if not token.startswith(("bytes:", "<")):
            assert choice.text[offset : offset + len(token)] == token


def test_trap_30_ignore_eos_gives_exactly_max_tokens(client: openai.OpenAI, running: Any) -> None:
    eos = running.runtime.engines["small"].tokens.eos_ids[0]
    likely = {"logit_bias": {str(eos): 8.0}, "max_tokens": 50}
    answer = complete(client, extra_body={"ignore_eos": True}, **likely)
    assert answer.usage.completion_tokens == 50
    assert answer.choices[0].finish_reason == "length"
    assert complete(client, **likely).usage.completion_tokens < 50


def test_end_token_counts_and_has_no_text(client: openai.OpenAI, running: Any) -> None:
    eos = running.runtime.engines["small"].tokens.eos_ids[0]
    answer = complete(client, logit_bias={str(eos): 100}, logprobs=1, extra_body={"trace": True})
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == len(answer.waver["trace"]) == len(answer.choices[0].logprobs.tokens) == 1


@pytest.mark.parametrize("echo", [True, False])
def test_stream_equals_whole(client: openai.OpenAI, http: httpx.Client, echo: bool) -> None:
    options = {"prompt": ["ab " * 40, "c"], "n": 2, "seed": 4, "logprobs": 2, "echo": echo, "max_tokens": 20}
    whole = complete(client, **options)
    chunks = stream(http, **options, stream_options={"include_usage": True})
    assert chunks[-1]["usage"] == whole.usage.model_dump(exclude_none=True)
    for choice in whole.choices:
        mine = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice.index]
        assert "".join(part["text"] for part in mine) == choice.text
        for key in ("tokens", "text_offset"):
            parts = [entry for part in mine if part["logprobs"] for entry in part["logprobs"][key]]
            assert parts == getattr(choice.logprobs, key)
        assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [choice.finish_reason]


def test_trap_2_indices_of_a_stream_ascend(http: httpx.Client) -> None:
    seen = [c["choices"][0]["index"] for c in stream(http, prompt=["a", "b"], n=2, max_tokens=5)]
    assert list(dict.fromkeys(seen)) == [0, 1, 2, 3]


def test_trap_15_long_echo_is_split_over_lines(http: httpx.Client) -> None:
    chunks = stream(http, prompt=[7] * 900, echo=True, logprobs=20, max_tokens=1)
    assert sum(len(c["choices"][0]["logprobs"]["tokens"]) for c in chunks if c["choices"][0]["logprobs"]) == 901


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": [5] * 1024}, "prompt"),
        ({"prompt": ["a"] * 600}, "prompt"),
    ],
)
def test_bad_requests(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    response = http.post("/v1/completions", json={"model": "small", **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_prompt_too_long_names_both_numbers(http: httpx.Client) -> None:
    error = http.post("/v1/completions", json={"model": "small", "prompt": [5] * 1500}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "1500" in error["message"]
    assert "1024" in error["message"]


def test_prompt_fills_the_context_but_for_one_token(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=[5] * 1023, max_tokens=50, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 1
    assert answer.choices[0].finish_reason == "length"
