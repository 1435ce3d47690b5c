"""Check the parsers of calls and of reasoning that an engine's configuration names."""

from __future__ import annotations

from collections.abc import Iterator

from waver.engines import EngineConfig
from waver.engines.tokens import TokenText
from waver.server.message.reasoning import reasoning_parser
from waver.server.tools.parsers import tool_parser


def parser_problems(config: EngineConfig, tokens: TokenText) -> Iterator[tuple[str, ValueError]]:
    """Load what the configuration names, and yield the fields that name none, each with its error; blocks."""
    try:
        if config.tool_parser is not None:
            tool_parser(config.tool_parser, tokens)
    except ValueError as error:
        yield "tool_parser", error
    try:
        if config.reasoning_parser != "auto":
            reasoning_parser(config.reasoning_parser, tokens)
    except ValueError as error:
        yield "reasoning_parser", error
