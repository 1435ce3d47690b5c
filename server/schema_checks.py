"""Check clients' JSON schemas in a separate process before an engine compiles them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from waver.engines.base import Engine
from waver.engines.schema_check import SchemaChecker
from waver.engines.tokens import TokenText, differences
from waver.server.errors import invalid

AT_ONCE = 2


class SchemaChecks:
    """A schema checker for each tokenizer. `seconds` and `memory` (bytes) bound the compilation of one schema."""

    def __init__(self, seconds: float, memory: int) -> None:
        self._seconds, self._memory = seconds, memory
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="schema")
        self._checkers: list[tuple[TokenText, SchemaChecker]] = []

    def warm(self, engines: Iterable[Engine]) -> None:
        """Start a process for each tokenizer; blocks."""
        for engine in engines:
            with suppress(Exception):  # a tokenizer that cannot be guided: requests are told
                self._checker(engine.tokens).warm()

    def _checker(self, tokens: TokenText) -> SchemaChecker:
        for known, checker in self._checkers:
            if known is tokens or differences(known, tokens) is None:
                return checker
        checker = SchemaChecker(tokens, self._seconds, self._memory)
        self._checkers.append((tokens, checker))
        return checker

    async def check(self, grammar: str, param: str, tokens: TokenText) -> None:
        """Compile a grammar in the checker's process, unless its result is cached; `param` is the field with it.

        Raises:
            APIError: 400, it cannot be compiled or satisfied, or takes too long or too much memory.
        """
        checker = self._checker(tokens)
        complaint = checker.known(grammar)
        if complaint is None:
            complaint = await asyncio.get_running_loop().run_in_executor(self._threads, checker.complaint, grammar)
        if complaint:
            raise invalid(f"{param} cannot be enforced: {complaint}.", param)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for _, checker in self._checkers:
            checker.close()
