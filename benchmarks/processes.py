"""Start processes for a benchmark: wait until they are ready, measure time and memory, end them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PATIENCE = 20.0
"""Seconds that processes are given to end before they are killed."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def go_first() -> bool:
    """Give this thread the CPU whenever it wants it, where the system allows that: on few cores a client that has to
    wait for the servers it times would time its own waiting. What it starts is scheduled as ever.

    Returns:
        Whether the system allows it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (AttributeError, OSError):  # not Linux, or not permitted
        return False
    return True


def descendants(root: int) -> dict[int, str]:
    """Return the names of a process and of all that descend from it, by id."""
    names: dict[int, str] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # ended meanwhile
                name, rest = _stat(int(folder.name))
                names[int(folder.name)] = name
                children.setdefault(int(rest[1]), []).append(int(folder.name))
    found: dict[int, str] = {}
    waiting = [root] if root in names else []
    while waiting:
        process = waiting.pop()
        found[process] = names[process]
        waiting += children.get(process, [])
    return found


def cpu_seconds(root: int) -> dict[str, float]:
    """Return CPU time that a process and its descendants have taken so far, by their names."""
    spent: defaultdict[str, float] = defaultdict(float)
    for process, name in descendants(root).items():
        with suppress(OSError):
            _, rest = _stat(process)
            spent[name] += (int(rest[11]) + int(rest[12])) / TICKS
    return spent


def resident(process: int) -> int:
    """Return bytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE


def quarters(memory: Sequence[int]) -> tuple[float, float]:
    """Return the mean of the second quarter of readings, when what is used has been loaded, and that of the last."""
    quarter = max(len(memory) // 4, 1)
    early, late = memory[quarter : 2 * quarter] or memory, memory[-quarter:]
    return sum(early) / len(early), sum(late) / len(late)


def running_state(process: int) -> str | None:
    """The letter that the system gives for what a process does (`Z`: it has ended, `T`: it is stopped); None if there
    is no such process."""
    try:
        return _stat(process)[1][0]
    except OSError:
        return None


def _stat(process: int) -> tuple[str, list[str]]:
    """Name and the other fields of /proc/ID/stat; the name may hold anything, a bracket too."""
    head, rest = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)
    return head.split("(", 1)[1], rest.split()


@contextmanager
def running(
    command: Sequence[str], log: Path, ready: str, seconds: float, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Yield a server in a session of its own, once `ready` answers 200; ended with all it started. Yields its process
    id.

    Raises:
        RuntimeError: it ended, or was not ready in time; the message holds the end of its log.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **(env or {})}
        )
    try:
        deadline = time.monotonic() + seconds
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                what = "ended" if process.poll() is not None else f"was not ready within {seconds:.0f} s"
                raise RuntimeError(f"{command[0]} {what}:\n{tail}")
            time.sleep(0.5)
        yield process.pid
    finally:
        end(process)


@contextmanager
def serving(configuration: Mapping[str, Any], folder: Path, seconds: float) -> Iterator[tuple[str, int]]:
    """Yield the address and the process id of a server of a configuration, on a port of its own, as `running` does.

    Args:
        folder: for its file, its log and, unless the configuration says where, its stores.
        seconds: that it is given to be ready.
    """
    port, file = free_port(), folder / "waver.yaml"
    content = {
        "state": str(folder / "state"), **configuration,
        "retrieval": {"path": str(folder / "collections"), **configuration.get("retrieval", {})},
        "server": {**configuration.get("server", {}), "port": port},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    url = f"http://127.0.0.1:{port}"
    with running(
        [sys.executable, "-m", "waver", "serve", "--config", str(file)], folder / "log", f"{url}/ready", seconds
    ) as process:
        yield url, process


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def end(process: subprocess.Popen[Any]) -> None:
    """Ask a process to end, and kill what is left of it and of its descendants."""
    family = descendants(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while (left := _alive(family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for each in left:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.wait()


def _alive(family: Mapping[int, str]) -> list[int]:
    """Return those that still run under their names: an id may have gone to another process."""
    left = []
    for process, name in family.items():
        with suppress(OSError):
            now, rest = _stat(process)
            if now == name and rest[0] != "Z":
                left.append(process)
    return left
