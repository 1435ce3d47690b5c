"""Grammars of answers that may call tools: every text is allowed but for calls that break the schema of their tool."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest
from transformers import AutoTokenizer

from tests.engines.driving import ROOT
from waver.engines.grammar import Grammar
from waver.engines.tokens import TokenText
from waver.server.errors import APIError
from waver.server.tools.free_grammar import form_or_calls, strict_calls
from waver.server.tools.offer import Offer
from waver.server.tools.schemas import Tool

CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
FORM = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


def tool(name: str, strict: bool, parameters: Any = CITY) -> Tool:
    function = {"name": name, "strict": strict, "parameters": parameters}
    return Tool.model_validate({"type": "function", "function": function})


OFFER = Offer((tool("f", True), tool("g", False)))


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def tokenizers() -> dict[str, TokenText]:
    """The bundled tokenizer, and one in which the tags of a call are control tokens."""
    control = AutoTokenizer.from_pretrained(ROOT / "models" / "small")
    control.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    return {"text": TokenText.load(str(ROOT / "models" / "small")), "control": TokenText(control)}


@pytest.fixture(scope="module", params=["text", "control"])
def tokens(request: pytest.FixtureRequest) -> TokenText:
    return tokenizers()[request.param]


def fits(grammar: str, text: str, tokens: TokenText) -> bool:
    """Return whether a whole text follows a grammar."""
    matcher: llguidance.LLMatcher = Grammar(tokens, tokens.vocab_size).matcher(grammar, [])
    ids = tokens.encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", True),
        ("No call < here.\n", True),
        (call("f", city="Rome"), True),
        (f"Well. {call('f', city='Oslo')}\n{call('g', anything=[1])} So.", True),
        (call("f", city="Paris"), False),
        (call("f"), False),
        (call("h"), False),
        ("<tool_call>\nnonsense\n</tool_call>", False),
        (call("f", city="Rome")[:-5], False),
    ],
)
def test_strict_calls(tokens: TokenText, text: str, allowed: bool) -> None:
    assert fits(strict_calls(OFFER, tokens), text, tokens) is allowed


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"a": 1}', True),
        (call("f", city="Rome"), True),
        (f"{call('f', city='Rome')}\n{call('g', city='Oslo')}", True),
        (call("g", anything=1), False),
        (f'{{"a": 1}}{call("f", city="Rome")}', False),
        ("text", False),
        ("", False),
    ],
)
def test_a_form_or_calls(tokens: TokenText, text: str, allowed: bool) -> None:
    assert fits(form_or_calls(FORM, OFFER, tokens), text, tokens) is allowed
    if text.count("<tool_call>") == 2:
        assert not fits(form_or_calls(FORM, Offer(OFFER.tools, single=True), tokens), text, tokens)


def test_schemas_are_bounded(tokens: TokenText) -> None:
    large = Offer((tool("f", True, {"properties": {"a": {"type": "array", "minItems": 30_000}}}),))
    for make in (lambda: strict_calls(large, tokens), lambda: form_or_calls(FORM, large, tokens)):
        with pytest.raises(APIError, match="minItems") as error:
            make()
        assert error.value.param == "tools"
