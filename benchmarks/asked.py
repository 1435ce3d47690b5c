"""Ask a server of one engine questions over HTTP, and keep the answers in a file, so that a stopped run goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import httpx

from waver import job
from waver.benchmarks.processes import serving
from waver.retrieval.config import DEFAULT_EMBEDDER

START = 600.0
"""Seconds that a server is given to load its libraries and models."""
AT_ONCE = 8
"""Requests in the air, and sequences that the engine decodes together."""


def engine(model: Path, dtype: str) -> dict[str, Any]:
    """Return the configuration of the engine that is asked: greedy decoding without a model's own penalties."""
    return {"model": str(model), "dtype": dtype, "max_sequences": AT_ONCE, "generation_config": "none"}


class Asked:
    """Answers of one server by key. Each is `{"key", "text", "finish", "prompt_tokens", "waver"}`."""

    def __init__(self, file: Path) -> None:
        """Read the answers that are there."""
        self._file, self._lock = file, Lock()
        self.answers: dict[str, dict[str, Any]] = {line["key"]: line for line in job.read_lines(file)}

    def left(self, wanted: Mapping[str, Any]) -> list[str]:
        """Return the keys of requests that have no answer yet."""
        return [key for key in wanted if key not in self.answers]

    def ask(
        self,
        http: httpx.Client,
        wanted: Mapping[str, Mapping[str, Any]],
        advance: Callable[[], Any],
        at_once: int | None = None,
    ) -> None:
        """Send the requests that have no answer yet, some at a time.

        Args:
            wanted: bodies of chat completions by key, without `model` and `temperature`.
            at_once: requests in the air, where not as many as the engine decodes together.

        Raises:
            RuntimeError: the server refuses one; the message holds its answer.
        """

        def one(key: str) -> None:
            body = {"model": "writer", "temperature": 0, **wanted[key]}
            response = http.post("/v1/chat/completions", json=body)
            if response.status_code != 200:
                raise RuntimeError(f"{key}: {response.status_code} {response.text[:500]}")
            found = response.json()
            choice = found["choices"][0]
            line = {
                "key": key,
                "text": choice["message"]["content"] or "",
                "finish": choice["finish_reason"],
                "prompt_tokens": found["usage"]["prompt_tokens"],
                "waver": {name: found["waver"].get(name) for name in ("guard", "facts", "memory", "episodes")},
            }
            with self._lock:
                self.answers[key] = line
                job.append_line(self._file, line)
            advance()

        with ThreadPoolExecutor(at_once or AT_ONCE) as pool:
            list(pool.map(one, self.left(wanted)))


def user(text: str) -> list[dict[str, str]]:
    """Return a conversation of one user message."""
    return [{"role": "user", "content": text}]


@contextmanager
def server(scratch: Path, engine: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Iterator[httpx.Client]:
    """Yield a client of a server with one engine, called `writer`, and a configuration that says `more`."""
    config = {"engines": {"writer": dict(engine)}, "retrieval": {"embedder": DEFAULT_EMBEDDER}, **(more or {})}
    with serving(config, scratch, START) as (url, _), httpx.Client(base_url=url, timeout=START) as client:
        yield client


@contextmanager
def served(engine: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Iterator[httpx.Client]:
    """Yield a client of such a server that leaves nothing behind."""
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch), engine, more) as http:
        yield http
