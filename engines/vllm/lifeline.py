"""What ties vLLM's processes to the server that started them: they end when it does, however it dies, and it notices
when one of them stands still."""

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
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np

BEAT = 0.5
"""Seconds between two beats of a process."""
PROCESSES = 1024
"""Most processes of one engine."""
PR_SET_PDEATHSIG = 1

Beats = np.ndarray[Any, np.dtype[np.int64]]


class Lifeline:
    """One start of an engine. It travels in vLLM's configuration, which every process of the engine unpickles before it
    does anything else: there it starts a thread that beats, and that ends the process when its parent is gone.

    A thread beats also while the process computes or compiles, for these let other threads run; it does not in a
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
        """Seconds without a beat of the process that has been silent for longest; 0 while none has begun to.

        Args:
            most: what one look may add: if this process was stopped itself, it has heard nobody.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, most), now
        beats = self._beats[:, 1].copy()
        self._silent = np.where(beats == self._seen, self._silent + passed, 0.0)
        self._silent[self._beats[:, 0] == 0] = 0.0
        self._seen = beats
        for place in np.nonzero(self._silent > 2 * BEAT)[0]:
            if not _runs(int(self._beats[place, 0])):  # its end is for vLLM to judge
                self._silent[place] = 0.0
        return float(self._silent.max())

    def close(self) -> None:
        """Remove the file; who still maps it goes on beating."""
        self._path.unlink(missing_ok=True)


def set_lifeline(config: Any, lifeline: Lifeline) -> None:
    """Put a lifeline beside the fields of vLLM's configuration, as these make the key of its compile cache."""
    config.waver_lifeline = lifeline


def hold(path: Path, parent: int) -> None:
    """End this process when its parent ends, and beat until then. `parent` is the process id."""
    end_with_parent()
    try:
        beats, place = _place(path)
    except OSError:  # the server is on another machine, or its file is gone: it is no longer listened to
        beats, place = np.zeros((1, 2), np.int64), 0

    def beating() -> None:
        while os.getppid() == parent:  # else it is an orphan that another process has taken
            beats[place, 1] += 1
            time.sleep(BEAT)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=beating, name="lifeline", daemon=True).start()


def end_with_parent() -> None:
    """Let the kernel end this process with the thread that started it, where it can: also when no thread of its own can
    run any more. (A parent that is gone before is seen by the thread that beats.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _place(path: Path) -> tuple[Beats, int]:
    """The beats, and the row of this process among them: its id, then a count."""
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
