"""Watch a server as a neighbour does, in a process of its own: what sends hostile requests is busy with them, and would
time its own waiting.

`watcher.py URL stream` asks for one stream after the other and notes how long they stand still; `watcher.py URL health`
asks for `/health` all the time and notes how long each answer takes. Each line of standard input asks for what was seen
since the line before; each line of standard output tells it as JSON. Times in seconds.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from waver.benchmarks.processes import go_first

NEIGHBOUR = {
    "model": "small", "policy": [], "prompt": "The", "max_tokens": 400, "ignore_eos": True, "temperature": 0,
    "stream": True,
}  # fmt: skip
PAUSE = 0.05
"""Between two health checks."""
AGAIN = 0.5
"""Before another try, where one failed."""


class Watcher:
    """Notes of a server, as its neighbour sees it.

    `streaming`: a stream is under way; `longest`: the longest time between two of its events; `checks`: how long health
    checks took; `failures`: what went wrong."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._lock = threading.Lock()
        self._last: float | None = None
        self._longest = 0.0
        self._checks: list[float] = []
        self._failures: list[str] = []

    def take(self) -> dict[str, Any]:
        """Return what was seen since the last call, the silence that is going on included."""
        with self._lock:
            self._note()
            seen = {
                "streaming": self._last is not None, "longest": self._longest, "checks": self._checks,
                "failures": self._failures,
            }  # fmt: skip
            self._longest, self._checks, self._failures = 0.0, [], []
            return seen

    def _note(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self._longest, self._last = max(self._longest, now - self._last), now

    def stream(self) -> None:
        """Read one stream to its end."""
        connection = http.client.HTTPConnection(self._host, timeout=120)
        try:
            connection.request("POST", "/v1/completions", json.dumps(NEIGHBOUR), {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            for line in answer:
                if line.startswith(b"data:"):
                    with self._lock:
                        self._note()
                        self._last = time.perf_counter()
                if b'"error"' in line:
                    raise ValueError(line.decode()[:200])
        finally:
            with self._lock:
                self._last = None  # between two streams nothing stands still
            connection.close()

    def health(self) -> None:
        """Ask once whether the server is up."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self._host, timeout=120)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()
        with self._lock:
            self._checks.append(time.perf_counter() - began)
        time.sleep(PAUSE)

    def run(self, kind: str) -> None:
        go_first()
        while True:
            try:
                (self.stream if kind == "stream" else self.health)()
            except (OSError, http.client.HTTPException, ValueError) as error:
                with self._lock:
                    self._failures.append(repr(error)[:200])
                time.sleep(AGAIN)


def main(url: str, kind: str) -> None:
    watcher = Watcher(url)
    threading.Thread(target=watcher.run, args=(kind,), daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps(watcher.take()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
