"""The way to read calls is chosen by the template; transformers' parser loses no text."""

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
        ("llama3", None, False),
        ("phi3", None, False),
    ],
)
def test_the_template_shows_the_parser(tokens: TokenText, name: str, parser: str | None, shows: bool) -> None:
    folder = templates()
    assert folder is not None
    made = tokens.with_template((folder / f"{name}.jinja").read_text(encoding="utf-8"))
    assert made.renders_tools is shows
    found = tool_parser(None, made)
    assert (found and found.name) == parser


def test_a_response_template_has_to_be_there(tokens: TokenText) -> None:
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

    begin = parser.make

    def make() -> PartReader:
        return begin(offered(), True)

    call = '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 2}}</tool_call>'
    rome = ("weather", {"city": "Rome", "days": 2})
    assert same_in_every_split(make, "Well. " + call + call + " So.") == ("Well.  So.", [rome, rome])
    for broken in (call.replace("2", "two"), '<tool_call>{"name": 5}</tool_call>', call.replace('"name"', '"nome"')):
        assert same_in_every_split(make, f"Well. {broken} So.") == (f"Well. {broken} So.", [])
    single = parser.make(offered(parallel_tool_calls=False), True)
    assert len(message(read(single, [call + call])[0]).calls) == 1
