"""Choose how the calls in a model's text are read: as the configuration says, or as the chat template shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from waver.engines.tokens import TokenText
from waver.server.message.parts import PartReader
from waver.server.tools import vllm_calls
from waver.server.tools.hermes import MARKERS, HermesCalls
from waver.server.tools.offer import Offer
from waver.server.tools.template_calls import TemplateCalls

VLLM = "vllm:"
"""Before the name of a parser of vLLM's, which may have that of one of ours."""
SIGNS = (
    ("qwen3_coder", ("<tool_call>", "<function=")),
    ("glm47", ("<tool_call>", "<arg_key>")),
    ("hermes", ("<tool_call>", "arguments")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>{{")),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>",)),
    ("llama4_pythonic", ("<|python_start|>",)),
    ("llama3_json", ("<|start_header_id|>", '"parameters": ')),
    ("granite4", ("<|tool_call|>", "<|start_of_role|>")),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("kimi_k2", ("<|tool_call_begin|>",)),
    ("gemma4", ("<|tool_call>",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("openai", ("<|channel|>",)),
)  # fmt: skip
"""Parsers by what stands in the chat templates of their models; the first that fits is taken."""


@dataclass(frozen=True)
class ToolParser:
    """A way to read calls. `make(offer, stream)` begins to read one answer.

    `markers`: control tokens that are part of the text which it reads; None: all of them.
    """

    name: str
    markers: frozenset[str] | None
    make: Callable[[Offer, bool], PartReader]


@lru_cache(maxsize=64)
def tool_parser(name: str | None, tokens: TokenText) -> ToolParser | None:
    """Return the parser of this name, or without a name the one that the chat template shows; None where it shows
    none, or one of vLLM's and vLLM is not installed.

    Raises:
        ValueError: there is none of this name.
    """
    if name is None:
        if getattr(tokens.tokenizer, "response_template", None):
            return tool_parser("hf", tokens)
        source = tokens.template_source
        found = next((known for known, signs in SIGNS if all(sign in source for sign in signs)), None)
        if found is None or (found != "hermes" and found not in vllm_calls.names()):
            return None
        try:
            return tool_parser(found, tokens)
        except ValueError:  # the template shows it, and the tokenizer lacks its tokens
            return None
    if name == "hermes":
        return ToolParser(name, frozenset(MARKERS), lambda offer, stream: HermesCalls(offer.single))
    if name == "hf":
        if not getattr(tokens.tokenizer, "response_template", None):
            raise ValueError("tool_parser: hf needs a model whose tokenizer has a response_template")
        return ToolParser(name, None, lambda offer, stream: TemplateCalls(tokens.tokenizer, offer))
    try:
        kind = vllm_calls.parser_class(name.removeprefix(VLLM))
    except ImportError:
        raise ValueError(
            f"tool_parser: '{name}' is one of vLLM's, which is not installed; there are hermes, hf"
        ) from None
    except KeyError:
        shown = ", ".join(["hermes", "hf", *(f"{VLLM}{each}" for each in vllm_calls.names())])
        raise ValueError(f"tool_parser: there is no '{name}'; there are {shown}") from None
    try:
        kind(tokens.tokenizer, [])
    except Exception as error:  # parsers raise their own kinds where tokens are missing
        raise ValueError(f"tool_parser: '{name}' does not fit the model: {error}") from error
    return ToolParser(name, None, partial(_vllm, kind, tokens))


def _vllm(kind: Any, tokens: TokenText, offer: Offer, stream: bool) -> PartReader:
    return vllm_calls.VllmCalls(kind, tokens.tokenizer, offer, stream)
