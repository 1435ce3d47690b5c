"""The server that is mistreated: started, watched for its memory, and started again should it go down."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from waver.benchmarks.processes import descendants, free_port, resident, running, running_state

MOST_MEMORY = 5 * 2**30
"""Bytes that a server and its processes may hold before they are ended: what takes more would take down others, too."""
LOOK = 0.1
"""Seconds between two looks at them."""


class Host:
    """A `waver serve` of a configuration, with a port that it is given. Usable as a context.

    Raises:
        RuntimeError: it does not start.
    """

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        content = {**content, "server": {**content.get("server", {}), "port": self.port}}
        (folder / "waver.yaml").write_text(yaml.safe_dump(content))
        self.process = 0
        self.deaths: list[str] = []
        """Cause of death of each server that went down."""
        self._closed = threading.Event()

    def __enter__(self) -> Host:
        self.start()
        threading.Thread(target=self._guard, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        self._stack.close()

    @property
    def alive(self) -> bool:
        return running_state(self.process) not in (None, "Z")

    @property
    def memory(self) -> int:
        """Bytes that the server itself holds; 0 if it is gone."""
        try:
            return resident(self.process)
        except OSError:
            return 0

    def start(self) -> None:
        """Start the server, or another one in the place of one that is gone."""
        self._stack.close()
        command = [sys.executable, "-m", "waver", "serve", "--config", str(self._folder / "waver.yaml")]
        log = self._folder / f"log-{len(self.deaths)}"
        self.process = self._stack.enter_context(running(command, log, f"{self.url}/ready", 300))

    def _guard(self) -> None:
        while not self._closed.wait(LOOK):
            held = 0
            for each in descendants(self.process):
                with suppress(OSError, ValueError):
                    held += resident(each)
            if held > MOST_MEMORY:
                with suppress(ProcessLookupError):
                    os.kill(self.process, signal.SIGKILL)
