"""Run code and tests: the process behind `waver.python_tests`."""

from __future__ import annotations

import _posixsubprocess
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from waver.isolation import serve

MODULES = (
    *("abc", "array", "bisect", "cmath", "collections", "collections.abc", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers"),
    *("operator", "queue", "random", "re", "statistics", "string", "textwrap", "time", "typing", "unicodedata"),
    *("calendar", "contextlib", "keyword", "pprint", "types", "zlib", "__future__", "_strptime"),
)
"""Modules that code may import, loaded before it begins."""
REFUSED = ("os.", "socket.", "subprocess.", "shutil.", "ctypes.", "pty.", "mmap.", "fcntl.", "signal.", "gc.")
"""Events (PEP 578) that code may not cause, besides opening a file and importing anything more."""


def handle(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return which tests pass behind the code: `{"passed": [...]}`."""
    asked = json.loads(data)
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # what the code prints goes nowhere
    for name in MODULES:
        importlib.import_module(name)
    share = request["limit"] / (1 + len(asked["tests"]))
    signal.signal(signal.SIGVTALRM, _too_long)
    without_network()
    confine()
    code = compiled(asked["code"], "answer")
    names: dict[str, Any] = {"__name__": "answer"}
    if code is None or not ran(lambda: exec(code, names), share):
        return {"passed": [False] * len(asked["tests"])}, b""
    return {"passed": [_passes(test, dict(names), share) for test in asked["tests"]]}, b""


def _passes(test: str, names: dict[str, Any], share: float) -> bool:
    code = compiled(test, "test")
    return code is not None and ran(lambda: exec(code, names), share)


def compiled(source: str, name: str) -> Any:
    """Compile a source; None where it is not Python."""
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def ran(work: Callable[[], object], seconds: float) -> bool:
    """Return whether work ends within so much processor time and raises nothing."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        work()
    except BaseException:  # SystemExit too: code that leaves has not passed
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return True


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


def without_network() -> None:
    """Leave the machine's network, where the system allows it, and the right to gain others."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        user, network, no_new_privileges = 0x10000000, 0x40000000, 38
        if libc.unshare(network) != 0:
            libc.unshare(user | network)
        libc.prctl(no_new_privileges, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # no Linux: the hook is all there is
        return


def confine() -> None:
    """Refuse what code that computes has no need of, from here on; it cannot be taken back."""
    allowed = frozenset(sys.modules) - {"ctypes", "_ctypes"}
    for name in ("ctypes", "_ctypes"):
        sys.modules.pop(name, None)
    for module, name in ((_posixsubprocess, "fork_exec"), (subprocess, "_fork_exec")):  # it has no event of its own
        setattr(module, name, None)
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import" and arguments[0] not in allowed:
            raise ImportError(f"no module named {arguments[0]!r} here")
        if event == "open" or event.startswith(REFUSED):
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(hook)


if __name__ == "__main__":
    serve(handle)
