"""Run work on hostile input in worker processes, with limits on time and memory that a thread cannot have.

A worker is a script with a function `handle(header, data)` that ends with `serve(handle)`. A request is a line of JSON
and its bytes; so is an answer. Scripts are run by their path, so that a worker imports only what it names itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from waver.resources import PACKAGE

Header = Mapping[str, Any]
Handler = Callable[[dict[str, Any], bytes], tuple[Header, bytes]]

START = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2], run_name='__main__')"
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that a process inherits: no keys."""
USES = 500
"""A process is replaced after so many requests, whatever it may have gathered."""
STARTING = 60.0
"""Seconds that a new process has for its start and its opening request."""


class Exhausted(Exception):
    """A worker exceeded its memory, or died for another reason."""


class Overdue(Exception):
    """A worker exceeded its time and was killed."""


class Workers:
    """Pool of processes that run one script, at most `at_once` at a time, kept warm. Every method may be called from
    any thread; `ask` blocks.

    Args:
        memory: address space of a process, in bytes.
        opening: what each process is asked first, such as to load what all requests need.
    """

    def __init__(
        self, script: Path, memory: int, at_once: int = 2, opening: Callable[[], tuple[Header, bytes]] | None = None
    ) -> None:
        self._script, self._memory, self._opening = script, memory, opening
        self._turn = threading.BoundedSemaphore(at_once)
        self._idle: list[Worker] = []
        self._closed = False
        weakref.finalize(self, _end_all, self._idle)  # also where nobody closes it

    def ask(self, header: Header, data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Return the answer of the script's `handle`, within `seconds`.

        Raises:
            Overdue, Exhausted: it said nothing.
        """
        with self._turn:
            worker = self._idle.pop() if self._idle else self._start()
            try:
                answer = worker.ask(header, data, seconds)
            except BaseException:
                worker.end()
                raise
            if worker.spent or self._closed:
                worker.end()
            else:
                self._idle.append(worker)
        return answer

    def warm(self) -> None:
        """Start one process, if none is idle.

        Raises:
            Overdue, Exhausted: it cannot be started.
        """
        with self._turn:
            if not self._idle:
                self._idle.append(self._start())

    def _start(self) -> Worker:
        worker = Worker(self._script, self._memory)
        if self._opening is not None:
            try:
                worker.ask(*self._opening(), STARTING)
            except BaseException:
                worker.end()
                raise
        return worker

    def close(self) -> None:
        self._closed = True
        _end_all(self._idle)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _end_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().end()


class Worker:
    """One worker process."""

    def __init__(self, script: Path, memory: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, str(PACKAGE.parent), str(script), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
        )
        self._left = USES

    @property
    def spent(self) -> bool:
        return self._left <= 0

    def ask(self, header: Header, data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and return the answer.

        Raises:
            Overdue, Exhausted: there is no answer.
        """
        stdin, stdout = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        clock = threading.Timer(seconds, stop)
        clock.daemon = True
        clock.start()
        try:
            # The process ends itself, too, in case nobody is left here to do it.
            stdin.write(json.dumps({**header, "bytes": len(data), "seconds": seconds + 1}).encode() + b"\n")
            stdin.write(data)
            stdin.flush()
            answer = json.loads(stdout.readline())
            found = stdout.read(answer["bytes"])
            if len(found) != answer["bytes"]:
                raise EOFError
        except (OSError, EOFError, ValueError) as error:
            raise (Overdue if late.is_set() else Exhausted)(f"{self._process.args!r:.80}") from error
        finally:
            clock.cancel()
        self._left -= 1
        if answer.get("exhausted"):
            raise Exhausted("out of memory")
        return answer, found

    def kill(self) -> None:
        """End the process; whoever waits for its answer in another thread gets none."""
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                cast(IO[bytes], pipe).close()
        self._process.wait()


def serve(handle: Handler) -> None:
    """Answer requests until the other side closes or memory runs out; with limits on memory and files."""
    bound(int(sys.argv[-1]))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["bytes"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(
                signal.ITIMER_REAL, request["seconds"]
            )  # nobody handles its signal, so it ends the process
        header: Header
        try:
            header, found = handle(request, data)
        except (MemoryError, RecursionError):
            header, found = {"exhausted": True}, b""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps({**header, "bytes": len(found)}).encode() + b"\n")
        answers.write(found)
        answers.flush()
        if header.get("exhausted"):
            return


def bound(memory: int) -> None:
    """Limit this process to `memory` bytes of address space, without writing files or core dumps."""
    try:
        import resource
    except ImportError:  # Windows: the time limit is all there is
        return
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
