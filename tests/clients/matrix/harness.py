"""Share among the scripts of the client matrix where the server is, a tool, and a way to run and report checks.

Each script runs in an environment of its own (`uv run --script`), so this file needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

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
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
TOO_LONG = "word " * 60_000
"""More than the model's context holds."""
OVERFLOW = "maximum context length"

_checks: list[Callable[[], Any]] = []


@contextmanager
def serving(command: Sequence[str], folder: Path, health: str, own: Mapping[str, str], seconds: float) -> Iterator[str]:
    """Run a client's own server in a folder, on a free port of this machine, and yield its address once it lives.

    Args:
        command: without host and port. health: the path that answers 200 then. own: variables of its environment.
        seconds: that it may take.

    Raises:
        AssertionError: it did not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    full = [*command, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(full, cwd=folder, env={**os.environ, **own}, stdout=subprocess.DEVNULL)
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + seconds
        while not _lives(url + health):
            assert server.poll() is None, "the server did not start"
            assert time.monotonic() < until, "the server takes too long to start"
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def _lives(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:  # on this machine
            return bool(answer.status == 200)
    except OSError:
        return False


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


def part(name: str, failed: str = "") -> None:
    """Report one part of a check that has many, and why it failed if it did; a check's own line follows."""
    print(json.dumps({"part": name, "failed": failed}), flush=True)


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
