"""Search for patterns that users write, within a time and beside the event loop: such patterns need not be linear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import regex

SECONDS = 0.05
"""Time that all patterns together may take on one text, in equal shares, in processor time of this process."""
THREADS = 2
"""Texts that are searched at a time."""


def searcher(patterns: Sequence[str]) -> Callable[[str], list[bool]]:
    """Make a function that tells which patterns a text contains; one that takes too long counts as not
    contained. It lets other threads run.

    Raises:
        ValueError: one is no pattern.
    """
    try:
        made = [regex.compile(each) for each in patterns]
    except regex.error as error:
        raise ValueError(str(error)) from None

    def contained(text: str) -> list[bool]:
        return [_contains(each, text, SECONDS / len(made)) for each in made]

    return contained


async def in_threads(contained: Callable[[str], list[bool]], text: str) -> list[bool]:
    """Search a text in one of a few threads, of which all requests together have `THREADS`."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), contained, text)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="patterns")


def _contains(pattern: regex.Pattern[str], text: str, seconds: float) -> bool:
    try:
        return pattern.search(text, timeout=seconds, concurrent=True) is not None
    except TimeoutError:
        return False
