"""Tokenise clients' texts: bounded in characters, in a thread pool of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from waver.engines.base import ContextExceeded
from waver.engines.tokens import TokenText
from waver.server.admission import Admission
from waver.server.errors import invalid

Result = TypeVar("Result")

CHARACTERS_A_TOKEN = 16
"""No text that anybody means has more for each token, on average; one token of white space may have a hundred."""
LEAST = 4096
"""Characters that any prompt may have."""
BLOCK = 8192
"""Characters that are tokenised at a time where a text is likely too long."""
LIKELY = 6
"""Characters for each token of the context from which on it is."""
SLACK = 8
"""Tokens of a block that may be there only because the text was cut."""


class TokenizerPool:
    """Thread pool for work on texts and answers: at most `threads` at a time; at most `waiting` requests are queued,
    first in, first out; any number if that is None."""

    def __init__(self, threads: int, waiting: int | None) -> None:
        self._most = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="texts")
        self._slots = Admission(threads, sys.maxsize if waiting is None else waiting)

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run work on a text in the pool.

        Raises:
            APIError: 429, too many wait.
        """
        async with self._slots.slot():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def resize(self, waiting: int) -> None:
        """Set how many requests may be queued."""
        self._slots.resize(self._most, waiting)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def check_length(texts: Sequence[str], context: int, param: str) -> None:
    """Refuse texts that cannot fit a context together, judged by their characters alone.

    Raises:
        ContextExceeded: they cannot.
    """
    characters = sum(map(len, texts))
    most = max(CHARACTERS_A_TOKEN * context, LEAST)
    if characters > most:
        raise ContextExceeded(context, f"{param} has {characters} characters, of which it holds {most} at most", param)


def check_tokens(texts: Sequence[str], tokens: TokenText, context: int, param: str) -> None:
    """Refuse texts that are likely too long for a context together, tokenising only as much as it takes to decide.
    Blocks.

    Raises:
        ContextExceeded: they are.
    """
    if sum(map(len, texts)) <= max(LIKELY * context, LEAST):
        return
    count = 0
    for text in texts:
        for start in range(0, len(text), BLOCK):
            count += max(len(tokens.encode_plain(text[start : start + BLOCK])) - SLACK, 0)
            if count > context:
                raise ContextExceeded(context, f"{param} has more than {count} tokens", param)


def check_characters(text: str, most: int, param: str) -> None:
    """Check the length of a text.

    Raises:
        APIError: 400, a text is longer than `most` characters.
    """
    if len(text) > most:
        raise invalid(f"{param} has {len(text)} characters; at most {most} are read.", param, "text_too_long")
