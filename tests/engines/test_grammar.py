"""Answers held to a JSON schema: whole or resumed, they parse and fit it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engines.driving import prompts, steps, tokens
from waver.engines.base import Unsupported
from waver.engines.grammar import Grammar
from waver.engines.grammar_forms import structural_tag
from waver.engines.transformers import TransformersEngine

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
)
PROMPT = prompts(1, seed=30)[0]
HOW: dict[str, Any] = {"temperature": 1.0, "max_tokens": 150, "grammar": SCHEMA}


def fits(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == ["name", "age", "tags"]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and 0 <= value["age"] <= 150
        and len(value["tags"]) <= 3
        and set(value["tags"]) <= {"a", "b"}
    )


@pytest.mark.parametrize("seed", range(8))
async def test_answers_fit(wild: TransformersEngine, seed: int) -> None:
    out = await steps(wild, PROMPT, seed=seed, top_logprobs=5, **HOW)
    text = wild.tokens.decode([step.token for step in out])
    if out[-1].finish == "stop":
        assert fits(text)
    for step in out:  # the mask counts as raw: what it bars has no probability
        assert step.logprob > -1e9
        assert all(logprob > -1e9 for _, logprob in step.top_logprobs)


async def test_resumed(wild: TransformersEngine) -> None:
    stopped = 0
    for seed in range(6):
        whole = await tokens(wild, PROMPT, seed=seed, **HOW)
        for cut in (1, len(whole) // 2, len(whole) - 1):
            first = await tokens(wild, PROMPT, seed=seed, **HOW | {"max_tokens": cut})
            rest = await steps(wild, [*PROMPT, *first], seed=seed, answer_start=len(PROMPT), **HOW)
            assert [*first, *(step.token for step in rest)] == whole
            stopped += rest[-1].finish == "stop"
    assert stopped > 3


async def test_the_end_of_the_grammar_is_the_end(wild: TransformersEngine) -> None:
    for options in ({}, {"ignore_eos": True}, {"min_tokens": 50}):
        grammar = {"grammar": '{"enum": ["yes", "no"]}', "max_tokens": 60}
        out = await steps(wild, PROMPT, **grammar, **options)
        assert out[-1].finish == "stop"
        assert json.loads(wild.tokens.decode([step.token for step in out])) in ("yes", "no")


@pytest.mark.parametrize(
    "schema", ["{", "[]", "5", '{"type": "foo"}', '{"$ref": "#/nowhere"}', '{"type": "string", "pattern": "("}']
)
async def test_schemas_that_cannot_be_enforced(wild: TransformersEngine, schema: str) -> None:
    with pytest.raises(Unsupported, match="cannot be enforced") as caught:
        await steps(wild, PROMPT, grammar=schema)
    assert caught.value.param == "response_format"
    assert wild.active == 0


async def test_an_answer_that_does_not_fit_is_refused(wild: TransformersEngine) -> None:
    begun = wild.tokens.encode("[1, 2", add_special_tokens=False)
    with pytest.raises(Unsupported, match="does not fit"):
        await steps(wild, [*PROMPT, *begun], answer_start=len(PROMPT), **HOW)


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ('{"a":1,"b":2}', True),
        ('{"a": 1, "b": 2}', True),
        ('{"a":  1', False),
        ('{ "a"', False),
        ('{\n "a"', False),
        ('{"a" :', False),
    ],
)
def test_white_space_is_one_space_at_most_behind_a_separator(
    wild: TransformersEngine, written: str, allowed: bool
) -> None:
    """Models write JSON so, and lose their way otherwise; none goes on for ever, in a structural tag either."""
    schema = {"type": "object", "properties": {"a": {"enum": [1]}, "b": {"enum": [2]}}, "required": ["a", "b"]}
    tag = {"structures": [{"begin": "<f>", "schema": schema, "end": "</f>"}], "triggers": ["<f"]}
    grammar = Grammar(wild.tokens, wild.vocabulary)
    for form, text in ((json.dumps(schema), written), (structural_tag(tag), f"<f>{written}")):
        matcher = grammar.matcher(form, [])
        ids = wild.tokens.encode_plain(text)
        assert (matcher.try_consume_tokens(ids) == len(ids)) is allowed
