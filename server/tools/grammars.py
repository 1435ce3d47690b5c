"""Choose the grammar of an answer in which tools may be called, as far as one is wanted and the engines follow it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from waver.engines.base import Engine, Sampling, Unsupported
from waver.engines.schema_check_worker import LARK, REGEX
from waver.engines.tokens import TokenText
from waver.server.errors import invalid
from waver.server.message.thinking import CLOSES
from waver.server.schema_checks import SchemaChecks
from waver.server.structured import Form
from waver.server.tools.free_grammar import form_or_calls, strict_calls
from waver.server.tools.offer import Offer

NATIVE = ("hermes", "vllm:hermes")
"""Parsers whose calls can be written as a grammar."""


def with_form(wanted: Form, offered: Offer, parser: str, tokens: TokenText) -> str:
    """Return the grammar of answers that have a form, unless they are calls.

    Raises:
        APIError: 400, the form is no JSON schema, or the model's calls cannot be written as a grammar.
    """
    if parser not in NATIVE or wanted.grammar.startswith((LARK, REGEX)):
        raise invalid(
            f"{wanted.param} cannot be combined here with tools that the model is free to call: it can be with a JSON "
            "schema, and a model that writes calls as Hermes does. Leave one of them out, or force a call by "
            "tool_choice.",
            wanted.param,
        )
    return form_or_calls(wanted.grammar, offered, tokens)


async def strict(
    offered: Offer, parser: str, tokens: TokenText, thinks: bool, engines: Sequence[Engine], checks: SchemaChecks
) -> str | None:
    """Return the grammar that holds free calls to the schemas of strict tools; None where it cannot be followed.

    Raises:
        APIError: 400, a schema cannot be compiled or satisfied, or is too large.
    """
    barred = thinks and CLOSES in tokens.control_tokens  # a text has no way to end the think block
    if parser not in NATIVE or barred or not any(tool.function.strict for tool in offered.tools):
        return None
    grammar = await asyncio.to_thread(strict_calls, offered, tokens)
    await checks.check(grammar, "tools", tokens)

    def followed() -> bool:
        try:
            for engine in engines:
                engine.check(Sampling(grammar=grammar), begun=len(engines) > 1)
        except Unsupported:
            return False
        return True

    return grammar if await asyncio.to_thread(followed) else None


def unenforced(offered: Offer, grammar: str | None) -> list[str]:
    """List the `strict` fields that change nothing, where there is no grammar."""
    if grammar is not None:
        return []
    return [f"tools[{i}].function.strict" for i, tool in enumerate(offered.tools) if tool.function.strict]
