"""How calls are read is chosen by the template, or by name; transformers' and vLLM's parsers give what ours does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.engines.driving import ROOT
from tests.server.test_tools import TOOLS
from tests.server.tools.test_hermes import message, read
from waver.engines.tokens import TokenText
from waver.server.message.parts import PartReader
from waver.server.tools.offer import Offer, offer
from waver.server.tools.parsers import tool_parser
from waver.server.tools.schemas import ToolFields

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
REGIONS = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>", "close": "</tool_call>", "content": "json", "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens() -> TokenText:
    return TokenText.load(str(ROOT / "models" / "small"))


def offered(**fields: Any) -> Offer:
    found = offer(ToolFields.model_validate({"tools": TOOLS, **fields}))
    assert found is not None
    return found


def templates() -> Path | None:
    """The chat templates that come with TRL."""
    spec = find_spec("trl")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "chat_templates"


@pytest.mark.skipif(templates() is None, reason="TRL is not installed")
@pytest.mark.parametrize(
    ("name", "parser", "shows"),
    [
        ("qwen2_5", "hermes", True),
        ("qwen3", "hermes", True),
        ("qwen3_5_think", "qwen3_coder", True),
        ("glm4moe", "glm47", True),
        ("llama3_1", "llama3_json", True),
        ("gptoss", "openai", True),
        ("llama3", None, False),
        ("phi3", None, False),
    ],
)
def test_the_template_shows_the_parser(tokens: TokenText, name: str, parser: str | None, shows: bool) -> None:
    folder = templates()
    assert folder is not None
    made = tokens.with_template((folder / f"{name}.jinja").read_text(encoding="utf-8"))
    assert made.renders_tools is shows
    if parser not in (None, "hermes") and find_spec("vllm") is None:
        parser = None
    found = tool_parser(None, made)
    assert (found and found.name) == parser


def test_an_unknown_parser_is_named(tokens: TokenText) -> None:
    with pytest.raises(ValueError, match="there is no 'nope'; there are hermes" if find_spec("vllm") else "hermes, hf"):
        tool_parser("nope", tokens)
    with pytest.raises(ValueError, match="response_template"):
        tool_parser("hf", tokens)


def same_in_every_split(make: Any, text: str) -> tuple[str, list[tuple[str, Any]]]:
    """The content and the calls of a text, which no split changes."""

    def found(pieces: Sequence[str]) -> tuple[str, list[tuple[str, Any]]]:
        made = message(read(make(), pieces)[0])
        return made.content, [(call.name, json.loads("".join(call.arguments))) for call in made.calls.values()]

    whole = found([text])
    assert found(list(text)) == whole
    for size in (2, 3, 7):
        assert found([text[i : i + size] for i in range(0, len(text), size)]) == whole
    return whole


def test_a_response_template_is_read(tokens: TokenText) -> None:
    made = tokens.with_template("{{ tools }}")
    made.tokenizer.response_template = REGIONS
    parser = tool_parser(None, made)
    assert parser is not None
    assert parser.name == "hf"

    def make() -> PartReader:
        return parser.make(offered(), True)

    call = '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 2}}</tool_call>'
    rome = ("weather", {"city": "Rome", "days": 2})
    assert same_in_every_split(make, "Well. " + call + call + " So.") == ("Well.  So.", [rome, rome])
    for broken in (call.replace("2", "two"), '<tool_call>{"name": 5}</tool_call>', call.replace('"name"', '"nome"')):
        assert same_in_every_split(make, f"Well. {broken} So.") == (f"Well. {broken} So.", [])
    single = parser.make(offered(parallel_tool_calls=False), True)
    assert len(message(read(single, [call + call])[0]).calls) == 1


@needs_vllm
def test_parsers_of_vllm(tokens: TokenText) -> None:
    text = 'Well. <tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 2}}</tool_call>'
    for name, written in (("vllm:hermes", text), ("llama3_json", '{"name": "now", "parameters": {}}')):
        parser = tool_parser(name, tokens)
        assert parser is not None
        for stream in (False, True):
            reader = parser.make(offered(), stream)
            parts = [part for word in tokens.encode(written) for part in reader.push(tokens.decode([word]), [word])]
            made = message([*parts, *reader.finish("stop")])
            assert reader.complete == 1
            [call] = made.calls.values()
            expected = ("now", {}) if name == "llama3_json" else ("weather", {"city": "Rome", "days": 2})
            assert (call.name, json.loads("".join(call.arguments))) == expected
            assert made.content.strip() == ("" if name == "llama3_json" else "Well.")
    for stream in (False, True):
        reader = parser.make(offered(), stream)
        made = message(read(reader, ['{"name": "now", "parameters": {"a": '])[0])
        assert (made.calls, reader.complete) == ({}, 0)
