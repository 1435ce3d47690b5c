"""Code of a model against tests: what passes, what is refused, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from waver.python_tests import Limits, Runner, code_of, run

GOOD = """
from collections import namedtuple
from math import isqrt

Point = namedtuple("Point", "x y")

def root(n):
    print("looking")
    return Point(isqrt(n), 0).x
"""
QUICK = Limits(seconds=1.0, memory_mib=256)


def test_code_in_an_answer() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("See:\n```python\na = 1\n```\nor\n```python\nb = 2\n```\nDone.") == "b = 2"
    assert code_of("See:\n```python\na = 1\n```\nand\n```python\nb = 2\nc =") == "b = 2\nc ="


def test_each_test_has_its_own_verdict() -> None:
    tests = [
        "assert root(9) == 3",
        "assert root(9) == 4",
        "import json\nassert json.loads('[16]') == [16]",
        "while True: pass",
    ]
    assert run(GOOD, tests, QUICK) == [True, False, True, False]


@pytest.mark.parametrize(
    "code",
    [
        "def f(:",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "while True: pass",
        "x = [0] * 10**10",
        "open('/etc/hostname')",
        "open('PLACE', 'w')",
        "import os\nos.system('touch PLACE')",
        "import os\nos.fork()",
        "import os\nos.listdir('/')",
        "import subprocess\nsubprocess.Popen(['touch', 'PLACE'])",
        "import _posixsubprocess\n_posixsubprocess.fork_exec(None)",
        "import socket\nsocket.socket()",
        "import ctypes",
        "import numpy",
    ],
)
def test_code_that_does_more_than_compute_passes_nothing(code: str, tmp_path: Path) -> None:
    place = tmp_path / "made"
    assert run(code.replace("PLACE", str(place)), ["assert True"], QUICK) == [False]
    assert not place.exists()


def test_nothing_of_the_server_s_environment_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVER_API_KEY", "secret")
    assert run("import os", ["assert 'WAVER_API_KEY' not in os.environ"], QUICK) == [True]


async def test_who_leaves_leaves_no_process_behind() -> None:
    runner = Runner(Limits(seconds=60.0))
    before = children()
    running = asyncio.create_task(runner.run("while True: pass", ["assert True"]))
    async with asyncio.timeout(30):
        while children() <= before:  # noqa: ASYNC110  # a process has no event for it
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children() <= before


def children() -> set[str]:
    """The processes that this one has started."""
    found: set[str] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found |= set((task / "children").read_text().split())
    return found
