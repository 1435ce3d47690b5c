"""Append a line of JSON for each request to a file, for a billing job. Lines hold names and numbers, never a text."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger("waver")

MOST = 100_000
"""Records that may wait for a disk."""
BATCH = 1000
STOP_SECONDS = 5.0


class UsageLog:
    """A file of records. It may be moved away at any time: the next record begins a new one in its place.

    Each record is appended by one write, so that several processes can share a file, and is on the disk a moment later.
    Writing happens in a thread of its own. `lost` counts records that a full disk or a full queue has cost.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and create it where there is none.

        Raises:
            ValueError: it cannot be written.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise ValueError(f"server.usage_file: {path} cannot be written: {error.strerror}.") from error
        self._broken = False
        self.lost = 0
        self._lines: queue.Queue[bytes | None] = queue.Queue(MOST)
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record soon; returns at once."""
        try:
            self._lines.put_nowait(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what still waits, for some seconds at most."""
        self._lines.put(None, timeout=STOP_SECONDS)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        line = self._lines.get()
        while line is not None:
            lines = []
            while line is not None:
                lines.append(line)
                if len(lines) == BATCH or self._lines.empty():
                    break
                line = self._lines.get()
            self._append(lines)
            line = line and self._lines.get()
        self._file.close()

    def _append(self, lines: list[bytes]) -> None:
        done = 0
        try:
            if self._moved():
                self._file.close()
                self._file, self._broken = self._open(), False
            for line in lines:
                self._put(line)
                done += 1
            os.fsync(self._file.fileno())
        except OSError as error:
            self.lost += len(lines) - done
            log.error("usage records cannot be written", file=str(self._path), reason=error.strerror)

    def _put(self, line: bytes) -> None:
        """Write a whole line. Behind half of one, which a full disk has left, a new line is begun first."""
        rest = (b"\n" if self._broken else b"") + line
        while rest:
            written = self._file.write(rest)
            self._broken = written < len(rest)
            rest = rest[written:]

    def _open(self) -> Any:
        return self._path.open("ab", buffering=0)

    def _moved(self) -> bool:
        """Return whether the file at the path is no longer the one that is open."""
        try:
            there, here = self._path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
