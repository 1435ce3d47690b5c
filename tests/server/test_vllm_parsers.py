"""vLLM's own parsers of calls and of reasoning read what models write, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.engines.driving import ROOT
from tests.engines.vllm_here import needs_vllm
from tests.server.test_tools import TOOLS
from tests.server.tools.test_hermes import message
from waver.engines.tokens import TokenText
from waver.server.message.reasoning import ReasoningReader, reasoning_parser
from waver.server.tools.offer import offer
from waver.server.tools.parsers import ToolParser, tool_parser
from waver.server.tools.schemas import ToolFields

pytestmark = needs_vllm
THOUGHT = "I wonder. It is Rome."
ROME = {"city": "Rome", "days": 2}
CALL = json.dumps({"name": "weather", "arguments": ROME})
FUNCTION = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"


@pytest.fixture(scope="module")
def tokens() -> TokenText:
    """The tokenizer of the small model, with the tags that parsers look for as tokens."""
    made = TokenText.load(str(ROOT / "models" / "small"))
    tags = ["<think>", "</think>", "<seed:think>", "</seed:think>", "<tool_call>", "</tool_call>", "<|python_tag|>"]
    made.tokenizer.add_tokens(tags)
    return TokenText(made.tokenizer, made.eos_ids)


def pieces(tokens: TokenText, text: str, size: int) -> list[tuple[str, list[int]]]:
    """Cut a text into pieces of so many tokens, each with its ids; 0: one piece."""
    ids = tokens.tokenizer.encode(text, add_special_tokens=False)
    size = size or len(ids)
    cut = [ids[i : i + size] for i in range(0, len(ids), size)]
    return [(str(tokens.tokenizer.decode(part, clean_up_tokenization_spaces=False)), part) for part in cut]


def calls(parser: ToolParser, parts: Sequence[tuple[str, list[int]]], stream: bool) -> tuple[str, list[Any]]:
    offered = offer(ToolFields.model_validate({"tools": TOOLS}))
    assert offered is not None
    reader = parser.make(offered, stream)
    found = [part for text, ids in parts for part in reader.push(text, ids)] + reader.finish("stop")
    made = message(found)
    return made.content.strip(), [(call.name, json.loads("".join(call.arguments))) for call in made.calls.values()]


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("vllm:hermes", f"<tool_call>\n{CALL}\n</tool_call>", ROME),
        ("llama3_json", CALL.replace("arguments", "parameters"), ROME),
        ("qwen3_coder", FUNCTION, {"city": "Rome"}),
        ("pythonic", "[weather(city='Rome', days=2)]", ROME),
    ],
)
def test_calls(tokens: TokenText, name: str, text: str, arguments: dict[str, Any]) -> None:
    parser = tool_parser(name, tokens)
    assert parser is not None
    for stream, size in ((False, 0), (True, 1), (True, 4)):
        assert calls(parser, pieces(tokens, text, size), stream) == ("", [("weather", arguments)]), (stream, size)
    assert calls(parser, pieces(tokens, "No call at all.", 1), True) == ("No call at all.", [])


@pytest.mark.parametrize(
    ("sign", "name"),
    [
        ("<function=", "qwen3_coder"),
        ("<arg_key>", "glm47"),
    ],
)
def test_the_template_shows_the_parser(tokens: TokenText, sign: str, name: str) -> None:
    parser = tool_parser(None, tokens.with_template(f"{{{{ tools }}}}<tool_call>{sign}"))
    assert parser is not None
    assert parser.name == name


def split(reader: ReasoningReader, parts: Sequence[tuple[str, list[int]]]) -> tuple[str, str]:
    found = [reader.push(text, ids) for text, ids in parts] + [reader.finish()]
    return "".join(reasoning for reasoning, _ in found), "".join(content for _, content in found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deepseek_r1", f"<think>{THOUGHT}</think>Rome."),
        ("vllm:deepseek_r1", f"{THOUGHT}</think>Rome."),
        ("qwen3", f"<think>{THOUGHT}</think>Rome."),
        ("seed_oss", f"<seed:think>{THOUGHT}</seed:think>Rome."),
    ],
)
def test_reasoning(tokens: TokenText, name: str, text: str) -> None:
    parser = reasoning_parser(name, tokens)
    assert parser is not None
    for size in (1, 3):
        assert split(parser.make([], {}, False), pieces(tokens, text, size)) == (THOUGHT, "Rome."), size
    assert split(parser.make([], {}, True), pieces(tokens, "Rome.", 1)) == ("", "Rome.")  # a form: no thinking


def test_a_prompt_that_has_closed_the_block(tokens: TokenText) -> None:
    parser = reasoning_parser("qwen3", tokens)
    assert parser is not None
    prompt = tokens.tokenizer.encode("Hi<think>\n\n</think>\n\n", add_special_tokens=False)
    assert split(parser.make(prompt, {}, False), pieces(tokens, "Rome.", 1)) == ("", "Rome.")
    reader = parser.make(prompt, {}, False)
    reader.begin(True)  # a policy has opened one
    assert reader.inside
    assert split(reader, pieces(tokens, f"{THOUGHT}</think>Rome.", 1)) == (THOUGHT, "Rome.")


def test_the_template_shows_the_reasoning(tokens: TokenText) -> None:
    plain = TokenText.load(str(ROOT / "models" / "small"))

    def shown(source: str) -> Any:
        return reasoning_parser("auto", plain.with_template(source))

    assert shown("<seed:think>").name == "vllm:seed_oss"
    assert shown("{{ messages }}") is None
    assert shown("</think>").name == "think"


@pytest.mark.parametrize(
    ("name", "said"),
    [("nobody", "there is no 'nobody'"), ("openai_gptoss", "token ids"), ("vllm:deepseek_r1", "does not fit")],
)
def test_what_is_no_parser(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        reasoning_parser(name, TokenText.load(str(ROOT / "models" / "small")))


def test_a_parser_of_calls_that_does_not_fit() -> None:
    plain = TokenText.load(str(ROOT / "models" / "small"))
    with pytest.raises(ValueError, match="does not fit"):
        tool_parser("llama3_json", plain)
    assert tool_parser(None, plain.with_template('{{ tools }}<|start_header_id|>"parameters": ')) is None


def test_a_parser_that_fails_leaves_the_text(tokens: TokenText, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = reasoning_parser("deepseek_r1", tokens)
    assert parser is not None
    reader: Any = parser.make([], {}, False)
    assert reader.push("I ", [5]) == ("I ", "")

    def fail(*args: Any, **options: Any) -> None:
        raise IndexError("a parser's own")

    monkeypatch.setattr(reader._parser, "parse_delta", fail)
    assert reader.push("am.", [6]) == ("", "am.")
    assert reader.finish() == ("", "")
