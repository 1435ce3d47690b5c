"""Files and folders that are removed when their owner has died: each is locked for as long as its owner lives, and the
next process that starts removes those without a lock."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from waver.engines.vllm.lifeline import RECORD

PREFIX = "waver-run-"
MEMORY = Path("/dev/shm")
"""Folder in which Linux shows shared memory and named semaphores as files."""


def claim(path: Path) -> int | None:
    """Lock a file or a folder until this process ends or closes the descriptor that this returns. The lock is the
    kernel's: it ends with a process however that dies, and holds across containers that share the folder, where process
    ids would mean nothing. None: another process has it, or it is gone.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == path.stat().st_ino:  # else it was removed between the two calls
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def reclaim(folder: Path, prefix: str) -> None:
    """Remove the files and folders of dead owners whose names begin with `prefix`."""
    for path in folder.glob(f"{prefix}*"):
        if (handle := claim(path)) is not None:
            if path.is_dir():
                remove_shared_memory(path / RECORD)
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):  # another user's
                    path.unlink()
            os.close(handle)


def remove_shared_memory(record: Path) -> None:
    """Remove the semaphores and the shared memory that a dead owner's processes recorded, as far as they are left."""
    with suppress(OSError):
        for line in record.read_text().splitlines():
            kind, _, name = line.partition(" /")
            file = {"semaphore": f"sem.{name}", "shared_memory": name}.get(kind)
            if file and "/" not in file:
                (MEMORY / file).unlink(missing_ok=True)


@cache
def run_folder() -> Path:
    """Make the folder of this process for files that its engines need while they run, such as the sockets of vLLM's
    processes. It is removed at the end of the process, or at the start of the next one.

    Raises:
        OSError: it cannot be made.
    """
    above = Path(tempfile.gettempdir())
    reclaim(above, PREFIX)
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))
        if claim(path) is not None:  # else another process that starts took it for a dead owner's
            atexit.register(shutil.rmtree, path, ignore_errors=True)
            return path
