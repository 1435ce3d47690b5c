"""Tie vLLM's processes to the server that started them: they end when it does, however it dies, and it notices by their
heartbeats when one of them hangs."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing import current_process, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np

from waver.engines.vllm.carried import carry

BEAT = 0.5
"""Seconds between two heartbeats of a process."""
PROCESSES = 1024
"""Most processes of one engine."""
PR_SET_PDEATHSIG = 1
RECORD = "shared"
"""File beside the heartbeats that lists the semaphores and the shared memory of an engine's processes."""

Beats = np.ndarray[Any, np.dtype[np.int64]]


class Lifeline:
    """One start of an engine. It travels in vLLM's configuration, which every process of the engine unpickles before it
    does anything else: there it starts a thread that counts heartbeats, and that ends the process when its parent
    is gone.

    The thread runs also while the process computes or compiles, as these release the interpreter; it does not in a
    process that is stopped, frozen with its container, or stuck in a call that holds the interpreter.
    """

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(prefix="beats-", dir=folder)
        os.truncate(handle, 2 * 8 * PROCESSES)
        os.close(handle)
        self._path = Path(name)
        self._beats = _mapped(self._path)
        self._seen = self._beats[:, 1].copy()
        self._silent = np.zeros(PROCESSES)
        self._looked = time.monotonic()

    def __getstate__(self) -> tuple[Path, int]:
        return self._path, os.getpid()

    def __setstate__(self, state: tuple[Path, int]) -> None:
        self._path, parent = state
        if getattr(current_process(), "_inheriting", False):  # multiprocessing is starting this process by spawn
            hold(self._path, parent)

    def silence(self, most: float = 1.0) -> float:
        """Compute the seconds since the last heartbeat of the process whose is the oldest; 0 while none has started.

        Args:
            most: seconds that one call may add: if this process was stopped itself, it saw no heartbeats.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, most), now
        beats = self._beats[:, 1].copy()
        self._silent = np.where(beats == self._seen, self._silent + passed, 0.0)
        self._silent[self._beats[:, 0] == 0] = 0.0
        self._seen = beats
        for place in np.nonzero(self._silent > 2 * BEAT)[0]:
            if not _runs(int(self._beats[place, 0])):  # vLLM notices the end of a process itself
                self._silent[place] = 0.0
        return float(self._silent.max())

    def close(self) -> None:
        """Remove the file; processes that have mapped it keep their mapping."""
        self._path.unlink(missing_ok=True)


def set_lifeline(config: Any, lifeline: Lifeline) -> None:
    """Hand a lifeline to vLLM's processes, each of which holds it once it has read its configuration."""
    carry(config, "lifeline", lifeline)


def hold(path: Path, parent: int) -> None:
    """End this process when its parent ends, and count heartbeats until then. `parent` is the process id."""
    end_with_parent()
    record_shared_memory(path.with_name(RECORD))
    try:
        beats, place = _place(path)
    except OSError:  # the server is on another machine, or its file is gone: nobody reads these heartbeats
        beats, place = np.zeros((1, 2), np.int64), 0

    def beating() -> None:
        while os.getppid() == parent:  # else the parent ended, and this process was adopted by another
            beats[place, 1] += 1
            time.sleep(BEAT)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=beating, name="lifeline", daemon=True).start()


def record_shared_memory(record: Path) -> None:
    """Write down what this process registers with Python's resource tracker, a line `kind name` each.

    The tracker removes it when the process ends, also when it is killed. Who kills the tracker with all the others, as
    the end of a session or of a control group does, leaves it to the next server that starts (`claim`)."""
    register = resource_tracker.register

    def recorded(name: str, kind: str) -> None:
        with suppress(OSError), record.open("a") as file:  # one short write, so processes do not mix their lines
            file.write(f"{kind} {name}\n")
        register(name, kind)

    resource_tracker.register = recorded  # type: ignore[assignment]


def end_with_parent() -> None:
    """Let the kernel, where it can, end this process with the thread that started it, even when no thread of this
    process can run any more. (The heartbeat thread notices a parent that ended before this call.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _place(path: Path) -> tuple[Beats, int]:
    """Take a row of the table of heartbeats for this process: its id, then a count."""
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        beats = _mapped(path)
        place = int(np.argmin(beats[:, 0]))
        beats[place] = os.getpid(), 1
    return beats, place


def _mapped(path: Path) -> Beats:
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64).reshape(PROCESSES, 2)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
