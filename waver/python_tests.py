"""Run a model's Python code against tests, in a process of its own for each code.

The process has no environment, no files to write and little memory and time (`waver.isolation`); once the code begins
(`waver.python_tests_worker`), it may import modules of the standard library that compute, and neither open files or
sockets nor start processes. Tests run in the same interpreter as the code, as HumanEval's do: code that is written to
cheat them can. This holds mistakes; against attacks run the server in a container as well.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from waver.isolation import Exhausted, Overdue, Worker

WORKER = Path(__file__).with_name("python_tests_worker.py")
AT_ONCE = 2
FENCE = re.compile(r"^[ \t]*```[^\n]*$", re.M)
LONGEST = 100_000
"""Characters of code that are run at most."""


@dataclass(frozen=True)
class Limits:
    """Limits of one run: processor time in seconds, and address space. The process ends after four times the time."""

    seconds: float = 5.0
    memory_mib: int = 512


def code_of(text: str) -> str:
    """Return the code in an answer: its last fenced block, which need not be closed yet, else the whole text."""
    fences = list(FENCE.finditer(text))
    if not fences:
        return text
    opens = fences[-2] if len(fences) % 2 == 0 else fences[-1]
    closes = fences[-1].start() if len(fences) % 2 == 0 else len(text)
    return text[opens.end() : closes].strip("\n")


def run(code: str, tests: Sequence[str], limits: Limits = Limits(), worker: Worker | None = None) -> list[bool]:
    """Tell which tests a code passes: snippets that raise nothing behind it. Blocks. Code that takes too much time or
    memory, or that ends its process, passes none.

    Args:
        worker: a process to run it in that somebody else may end; it is used up.
    """
    none = [False] * len(tests)
    if len(code) > LONGEST or not tests:
        return none
    own = start(limits) if worker is None else worker
    try:
        data = json.dumps({"code": code, "tests": list(tests)}).encode()
        told, _ = own.ask({"limit": limits.seconds}, data, 4 * limits.seconds)
    except (Overdue, Exhausted):
        return none
    finally:
        own.end()
    passed = told.get("passed")
    return [each is True for each in passed] if isinstance(passed, list) and len(passed) == len(tests) else none


def start(limits: Limits) -> Worker:
    """Start a process for one run."""
    return Worker(WORKER, limits.memory_mib << 20)


class Runner:
    """Runs codes beside an event loop, `AT_ONCE` at a time; what its caller no longer waits for is killed."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def run(self, code: str, tests: Sequence[str]) -> list[bool]:
        """Tell which tests a code passes, as `run` does."""
        async with self._turn:
            starting = asyncio.ensure_future(asyncio.to_thread(start, self._limits))
            try:
                worker = await asyncio.shield(starting)
            except asyncio.CancelledError:
                (await starting).end()
                raise
            running = asyncio.ensure_future(asyncio.to_thread(run, code, tests, self._limits, worker))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                worker.kill()
                await asyncio.wait({running})
                raise
