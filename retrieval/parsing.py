"""Documents are read in processes of their own, which are ended when they take too long and replaced when they die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import IO, cast

from waver.resources import PACKAGE
from waver.retrieval.base import BadDocument, TooLarge
from waver.retrieval.formats import clean, decode, kind_of

START = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); from waver.retrieval.worker import main; main()"
DOCUMENTS_EACH = 500
"""A process is replaced after so many documents, whatever it may have gathered."""
FAILED = "reading it failed: it is damaged, or takes more memory than is allowed"
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""What a process learns of the environment: no keys."""


class Parsers:
    """Reads documents, `at_once` at a time. Sizes in bytes, time in seconds."""

    def __init__(self, max_file: int, max_text: int, seconds: float, memory: int, at_once: int = 2) -> None:
        self._max_file, self._max_text = max_file, max_text
        self._seconds, self._memory = seconds, memory
        self._turn = threading.BoundedSemaphore(at_once)
        self._idle: list[_Process] = []

    def check_size(self, size: int) -> None:
        """Raises:
        TooLarge: a document of so many bytes is not read."""
        if size > self._max_file:
            raise TooLarge(f"it is larger than {self._max_file} bytes")

    def parse(self, data: bytes, name: str, content_type: str = "") -> tuple[str, str]:
        """A document's title (may be empty) and text.

        Raises:
            BadDocument: it cannot be read, or holds no text.
            TooLarge: it, or what is in it, is beyond the limits.
        """
        self.check_size(len(data))
        if not data.strip():
            raise BadDocument("it is empty")
        kind = kind_of(data, name, content_type)
        if kind == "text":
            title, text = "", clean(decode(data))
            if len(text.encode("utf-8", "replace")) > self._max_text:
                raise TooLarge(f"its text is larger than {self._max_text} bytes")
        else:
            title, text = self._ask(kind, data)
        if not text:
            raise BadDocument("it holds no text")
        return title, text

    def _ask(self, kind: str, data: bytes) -> tuple[str, str]:
        with self._turn:
            try:
                process = self._idle.pop()
            except IndexError:
                process = _Process(self._memory)
            try:
                answer = process.ask(kind, data, self._max_text, self._seconds)
            except BaseException:
                process.end()
                raise
            if process.spent:
                process.end()
            else:
                self._idle.append(process)
        return answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop().end()

    def __enter__(self) -> Parsers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Process:
    def __init__(self, memory: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
        )
        self._left = DOCUMENTS_EACH

    @property
    def spent(self) -> bool:
        return self._left <= 0

    def ask(self, kind: str, data: bytes, most: int, seconds: float) -> tuple[str, str]:
        stdin, stdout = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        clock = threading.Timer(seconds, stop)
        clock.start()
        try:
            stdin.write(json.dumps({"kind": kind, "bytes": len(data), "most": most}).encode() + b"\n")
            stdin.write(data)
            stdin.flush()
            answer = json.loads(stdout.readline())
            text = stdout.read(answer.get("bytes", 0))
            if len(text) != answer.get("bytes", 0):
                raise EOFError
        except (OSError, EOFError, json.JSONDecodeError):
            reason = f"reading it took longer than {seconds:g} s" if late.is_set() else FAILED
            raise BadDocument(reason) from None
        finally:
            clock.cancel()
        self._left -= 1
        if "error" in answer:
            if answer["error"] == "TooLarge":
                self._left = 0
                raise TooLarge(answer["message"])
            raise BadDocument(answer["message"])
        return answer["title"], text.decode("utf-8")

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                cast(IO[bytes], pipe).close()
        self._process.wait()
