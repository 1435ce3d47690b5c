"""The form of an answer in every way that people ask for it, on one engine and across hand-overs."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from waver.engines.base import EngineError
from waver.engines.sequence import SequenceState

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
OBJECT = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
GBNF = 'root ::= "yes" | "no" [0-9]'
LARK = 'start: "yes" | "no" /[0-9]/'
TAG = {"structures": [{"begin": "<f=a>", "schema": OBJECT, "end": "</f>"}], "triggers": ["<f="]}


def ask(http: httpx.Client, **options: Any) -> httpx.Response:
    return http.post(CHAT, json={"messages": HELLO, "model": "small", "max_tokens": 64, "seed": 1, **options})


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    content: str = choice["message"]["content"]
    return content


@pytest.mark.parametrize(
    ("field", "pattern"),
    [
        ({"guided_json": OBJECT}, r'\{"a": ?[12]\}'),
        ({"guided_json": json.dumps(OBJECT)}, r'\{"a": ?[12]\}'),
        ({"json_schema": OBJECT}, r'\{"a": ?[12]\}'),
        ({"response_format": {"type": "json_object", "schema": OBJECT}}, r'\{"a": ?[12]\}'),
        ({"structured_outputs": {"json": OBJECT}}, r'\{"a": ?[12]\}'),
        ({"guided_regex": "[a-c]{3}[0-9]"}, "[a-c]{3}[0-9]"),
        ({"regex": "[a-c]{3}[0-9]"}, "[a-c]{3}[0-9]"),
        ({"structured_outputs": {"regex": "x|yy"}}, "x|yy"),
        ({"guided_choice": ["positive", 'neg"ative\n']}, 'positive|neg"ative\n'),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"guided_grammar": GBNF}, "yes|no[0-9]"),
        ({"grammar": LARK}, "yes|no[0-9]"),
        ({"ebnf": GBNF}, "yes|no[0-9]"),
        ({"structured_outputs": {"grammar": LARK}}, "yes|no[0-9]"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_every_form_is_kept(http: httpx.Client, field: dict[str, Any], pattern: str) -> None:
    for policy in ([], "coin"):
        assert re.fullmatch(pattern, text(ask(http, policy=policy, **field)))


def test_a_structural_tag_holds_behind_its_trigger(http: httpx.Client, running: Any) -> None:
    tokens = running.runtime.engines["small"].tokens
    bias = {str(token): 60 for token in set(tokens.encode_plain("<f="))}
    for field in (
        {"structural_tag": TAG},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
        {"response_format": {"type": "structural_tag", **TAG}},
    ):
        answer = ask(http, logit_bias=bias, temperature=1.0, max_tokens=200, **field)
        assert answer.status_code == 200, answer.text
        content = answer.json()["choices"][0]["message"]["content"]
        for part in content.split("<f=")[1:-1]:
            assert re.match(r'a>\{"a": ?[12]\}</f>', part), content


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"guided_choice": "yes"}, "guided_choice"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_regex": "a{20000}"}, "guided_regex"),
        ({"guided_grammar": "what is this"}, "guided_grammar"),
        ({"structural_tag": {"structures": []}}, "structural_tag"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": OBJECT, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        (
            {"structured_outputs": {"json": OBJECT, "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
        ),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_regex": "a", "allowed_token_ids": [5]}, "allowed_token_ids"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_cannot_be_is_refused(http: httpx.Client, field: dict[str, Any], param: str) -> None:
    answer = ask(http, **field)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert len(error["message"]) < 300


SELF = {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(520)}}, "too complex"),
        ({"$ref": "#"}, "no value satisfies it"),
        (SELF, "needs itself"),
        ({"type": "array", "minItems": 30_000, "items": {"const": 1}}, "at most 10000"),
        ({"type": "array", "maxItems": 100_000, "items": {"type": "string"}}, "at most 10000"),
        ({"type": "array", "items": {"const": 1}, "x-guidance": {"item_separator": "X"}}, "x-guidance"),
        ({"oneOf": [{"properties": {"a": {"type": "string"}}}, {"required": ["b"]}]}, "use anyOf"),
        ({"$ref": "http://example.org/schema"}, "within the schema"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_schema_that_cannot_be_enforced_is_refused_in_one_sentence(
    http: httpx.Client, schema: dict[str, Any], words: str
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    for field in ({"response_format": wanted}, {"structured_outputs": {"json": schema}}):
        answer = ask(http, **field)
        assert answer.status_code == 400, answer.text
        message = answer.json()["error"]["message"]
        assert words in message
        assert len(message) < 300
        assert "/" not in message.replace("http://", "").replace("/schema", "")


def test_a_grammar_that_fails_in_the_engine_is_an_error(
    http: httpx.Client, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matcher of the first sequence meets a token that its grammar does not allow, as a defect would have it."""
    accept = SequenceState.accept

    def wrong(self: SequenceState, token: int, entropy: float, context_length: int) -> Any:
        if self.matcher is not None and len(self.answer) == 1:
            self.matcher.consume_tokens([running.runtime.engines["small"].tokens.encode_plain("}")[0]] * 2)
        return accept(self, token, entropy, context_length)

    monkeypatch.setattr(SequenceState, "accept", wrong)
    body = {"response_format": {"type": "json_object"}}
    answer = ask(http, **body)
    assert answer.status_code == 503
    assert "grammar" in answer.json()["error"]["message"]
    lines = [line for line in ask(http, stream=True, **body).text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert "grammar" in json.loads(lines[-2].removeprefix("data: "))["error"]["message"]
    assert EngineError.__name__ not in lines[-2]
