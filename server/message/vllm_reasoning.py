"""Split reasoning from the rest by vLLM's own reasoning parsers, where vLLM is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

log = structlog.get_logger("waver")

HARMONY = "openai_gptoss"


def parser_class(name: str) -> Any:
    """Load a parser of vLLM's that splits reasoning off, by its name.

    Raises:
        ImportError: vLLM is not installed. KeyError: it has none of this name.
    """
    from vllm.parser.parser_manager import ParserManager
    from vllm.reasoning import ReasoningParserManager

    if name not in ReasoningParserManager.list_registered():
        raise KeyError(name)
    return ParserManager.get_parser(reasoning_parser_name=name)


def names() -> list[str]:
    """List the names of vLLM's reasoning parsers; empty where vLLM is not installed. Harmony, which is read from token
    ids together with its calls, is none of them."""
    try:
        from vllm.reasoning import ReasoningParserManager
    except ImportError:
        return []
    return [name for name in ReasoningParserManager.list_registered() if name != HARMONY]


class VllmReasoning:
    """A reasoning parser of vLLM's as a `ReasoningReader`; a text that it fails on is content from there on.

    Args:
        kind: what `parser_class` returns. prompt_ids: those of the prompt, which may have opened or closed the block.
        closed: the answer cannot begin with reasoning.
    """

    def __init__(
        self,
        kind: Any,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        variables: Mapping[str, Any] | None = None,
        closed: bool = False,
    ) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        self._request = ChatCompletionRequest(messages=[], model="")
        self._parser = kind(tokenizer, chat_template_kwargs=dict(variables or {}))
        self._prompt: list[int] | None = list(prompt_ids)
        self._plain = closed
        """True if all that comes is content."""
        self._thought = self._said = False
        reasoning = self._parser.reasoning_parser
        self._opens = reasoning.reasoning_start_str or ""
        tags = {self._opens, reasoning.reasoning_end_str}
        self.markers = None if reasoning.engine_based_streaming else frozenset(tag for tag in tags if tag)
        """Control tokens that mean something to the parser; None: all of them."""

    @property
    def inside(self) -> bool:
        """Return whether the text so far ends in reasoning, as far as the parser has told."""
        return self._thought and not self._said

    def begin(self, opened: bool) -> None:
        """Say whether the answer begins in reasoning, whatever the prompt tells."""
        self._plain = not opened
        self._prompt = None
        self._thought = opened

    def push(self, text: str, ids: Sequence[int] = ()) -> tuple[str, str]:
        """Take more of the text, and its tokens; return what it adds to the reasoning, and to the rest."""
        return self._read(text, ids, finished=False) if text or ids else ("", "")

    def finish(self) -> tuple[str, str]:
        """Take the end of the text."""
        return self._read("", (), finished=True)

    def _read(self, text: str, ids: Sequence[int], finished: bool) -> tuple[str, str]:
        if self._plain:
            return "", text
        try:
            delta = self._parser.parse_delta(text, list(ids), self._request, self._prompt, finished=finished)
        except Exception as error:  # each parser raises its own kinds
            log.warning("a reasoning parser failed", kind=type(error).__name__)
            self._plain = True
            return "", text
        reasoning, content = (delta.reasoning or "", delta.content or "") if delta is not None else ("", "")
        if not self._thought:  # some parsers keep the tag where it comes together with what follows
            reasoning = reasoning.removeprefix(self._opens)
        self._thought = self._thought or bool(reasoning)
        self._said = self._said or bool(content)
        return reasoning, content
