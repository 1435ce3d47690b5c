"""Choose how reasoning is told apart from an answer: as the configuration says, or as tokens and template show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from waver.engines.tokens import TokenText
from waver.server.message import vllm_reasoning
from waver.server.message.thinking import ThinkBlock

VLLM = "vllm:"
"""Before the name of a parser of vLLM's."""
SIGNS = (
    ("seed_oss", "<seed:think>"),
    ("cohere_command3", "<|START_THINKING|>"),
    ("mistral", "[THINK]"),
    ("gemma4", "<|channel>"),
)
"""vLLM's parsers by what stands in the chat templates of their models; the first that fits is taken."""


class ReasoningReader(Protocol):
    """Reads a text piece by piece, and splits reasoning from the rest."""

    @property
    def inside(self) -> bool:
        """Return whether the text so far ends in reasoning."""

    @property
    def markers(self) -> frozenset[str] | None:
        """Control tokens that mean something to it; None: all of them."""

    def begin(self, opened: bool) -> None:
        """Say, before the first piece, whether the answer begins in reasoning that a policy has opened."""

    def push(self, text: str, ids: Sequence[int] = ()) -> tuple[str, str]:
        """Take more of the text, and its tokens; return what it adds to the reasoning, and to the rest."""

    def finish(self) -> tuple[str, str]:
        """Take the end of the text."""


@dataclass(frozen=True)
class ReasoningParser:
    """A way to tell reasoning apart. `make(prompt_ids, variables, closed)` begins to read one answer: the ids of its
    prompt, the variables of the chat template, and whether it cannot begin with reasoning."""

    name: str
    make: Callable[[Sequence[int], Mapping[str, Any], bool], ReasoningReader]


@lru_cache(maxsize=64)
def reasoning_parser(name: str, tokens: TokenText) -> ReasoningParser | None:
    """Return the parser of this name; of `auto` think tags where model or template know them, or the one of vLLM's that
    the template shows; None where there is none, or `none` is wanted.

    Raises:
        ValueError: there is none of this name, or it does not fit the model's tokens.
    """
    if name == "none":
        return None
    if name == "think" or (name == "auto" and tokens.knows_thinking):
        return ReasoningParser("think", lambda ids, variables, closed: ThinkBlock(not closed and tokens.in_think(ids)))
    if name != "auto":
        return _vllm(name.removeprefix(VLLM), tokens)
    source = tokens.template_source
    found = next((known for known, sign in SIGNS if sign in source), None)
    if found is None or found not in vllm_reasoning.names():
        return None
    try:
        return _vllm(found, tokens)
    except ValueError:  # the template shows it, and the tokenizer lacks its tokens
        return None


def _vllm(name: str, tokens: TokenText) -> ReasoningParser:
    """Return a parser of vLLM's.

    Raises:
        ValueError: there is none of this name, or it does not fit the model's tokens.
    """
    known = ["auto", "think", "none"]
    if name == vllm_reasoning.HARMONY:
        raise ValueError(f"reasoning_parser: '{name}' reads token ids together with calls, which Waver does not do")
    try:
        kind = vllm_reasoning.parser_class(name)
    except ImportError:
        raise ValueError(
            f"reasoning_parser: '{name}' is one of vLLM's, which is not installed; there are {', '.join(known)}"
        ) from None
    except KeyError:
        shown = ", ".join([*known, *(f"{VLLM}{each}" for each in vllm_reasoning.names())])
        raise ValueError(f"reasoning_parser: there is no '{name}'; there are {shown}") from None

    def make(ids: Sequence[int], variables: Mapping[str, Any], closed: bool) -> ReasoningReader:
        return vllm_reasoning.VllmReasoning(kind, tokens.tokenizer, ids, variables, closed)

    try:
        make([], {}, False)
    except Exception as error:  # parsers raise their own kinds where tokens are missing
        raise ValueError(f"reasoning_parser: '{name}' does not fit the model: {error}") from error
    return ReasoningParser(f"{VLLM}{name}", make)
