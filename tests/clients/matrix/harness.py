"""Share among the scripts of the client matrix where the server is, a tool, and a way to run and report checks.

Each script runs in an environment of its own (`uv run --script`), so this file needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

ROOT = os.environ["WAVER_URL"]
V1 = f"{ROOT}/v1"
MODEL = os.environ["WAVER_MODEL"]
EMBEDDER = os.environ["WAVER_EMBEDDER"]
KEY = "none"
HELLO = "Say hello."
QUESTION = "What is the weather in Rome?"
CITIES = ("Rome", "Oslo")
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": [*CITIES]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOO_LONG = "word " * 60_000
"""More than the model's context holds."""
OVERFLOW = "maximum context length"

_checks: list[Callable[[], Any]] = []


def weather(city: str) -> str:
    """Tell the weather in a city.

    Args:
        city: Rome or Oslo.
    """
    return f"It is sunny in {city}."


def check(function: Callable[[], Any]) -> Callable[[], Any]:
    """Register a check, which fails if it raises; its name is the column of the matrix."""
    _checks.append(function)
    return function


def refusal(call: Callable[[], Any]) -> Exception:
    """Return the error that a call ends with.

    Raises:
        AssertionError: it ends well.
    """
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("a prompt that is too long was accepted")


def run() -> None:
    """Run all checks, and print a line of JSON for each: `check`, `passed`, `said`."""
    with asyncio.Runner() as runner:  # one loop for all: clients keep connections, which belong to a loop
        for function in _checks:
            passed, said = True, ""
            try:
                result = runner.run(function()) if inspect.iscoroutinefunction(function) else function()
                said = result if isinstance(result, str) else ""
            except Exception as error:
                passed, said = False, f"{type(error).__name__}: {error}".split("\n")[0][:300]
                traceback.print_exc()
            print(json.dumps({"check": function.__name__, "passed": passed, "said": said}), flush=True)
