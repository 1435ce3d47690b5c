"""The processes of the table: a server, the upstream behind it and its database; each can be killed, stopped and
started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import httpx
import yaml

from waver.benchmarks.postgres import Postgres
from waver.benchmarks.processes import descendants, end, free_port, running_state

START = 300.0
"""Seconds that a server may take to become ready."""
GRACE = 5
"""Seconds that a server gives its running answers when it is told to stop."""


class Part(Protocol):
    """A process, or several, that can be mistreated."""

    def signal(self, number: int) -> None:
        """Send it a signal."""

    def again(self) -> None:
        """Start it again once it has ended."""


class Served:
    """A `waver serve`, in a process of its own."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self._folder, self._starts = folder, 0
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        folder.mkdir(parents=True, exist_ok=True)
        server = {**content.get("server", {}), "port": port, "shutdown_grace": GRACE}
        self.file = folder / "waver.yaml"
        self.file.write_text(yaml.safe_dump({**content, "server": server}))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Start it.

        Raises:
            RuntimeError: it does not become ready.
        """
        self._starts += 1
        command = [sys.executable, "-m", "waver", "serve", "--config", str(self.file)]
        with (self._folder / f"log-{self._starts}").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START
        while wait and not self.ready:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / f"log-{self._starts}").read_text(errors="replace")[-2000:])
            time.sleep(0.2)

    @property
    def process(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def signal(self, number: int) -> None:
        os.kill(self.process, number)

    def again(self) -> None:
        assert self._process is not None
        self._process.wait(60)
        self.start(wait=False)

    def close(self) -> None:
        """End it, also where it is stopped."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            end(self._process)


class EngineCore:
    """The process of vLLM's engine under a server, which starts another one by itself."""

    def __init__(self, server: Served, name: str = "VLLM::EngineCore") -> None:
        self._server, self._name = server, name

    def signal(self, number: int) -> None:
        found = [each for each, name in descendants(self._server.process).items() if name.startswith(self._name[:15])]
        for each in found:
            os.kill(each, number)
        if not found:
            raise RuntimeError(f"there is no process {self._name}")

    def again(self) -> None:
        """Do nothing."""


class Database:
    """A PostgreSQL."""

    def __init__(self, server: Postgres) -> None:
        self._server, self._process = server, server.process

    def signal(self, number: int) -> None:
        """Send a signal to the whole of it: backends of a stopped one would go on."""
        family = descendants(self._process)
        for each in family:
            with suppress(ProcessLookupError):
                os.kill(each, number)

    def again(self) -> None:
        deadline = time.monotonic() + 20
        while running_state(self._process) not in (None, "Z") and time.monotonic() < deadline:
            time.sleep(0.1)
        self._server.forget()
        self._server.start()
        self._process = self._server.process
