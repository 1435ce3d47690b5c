"""Start a PostgreSQL of the machine's own for a test, where there is one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from waver.benchmarks.postgres import Missing, Postgres


@contextmanager
def postgresql() -> Iterator[str]:
    """Yield the address of a fresh database that listens on a socket; skips where none is installed."""
    with tempfile.TemporaryDirectory(prefix="waver-pg-") as name:  # pytest's own folders are for root alone
        try:
            server = Postgres(Path(name))
        except Missing as error:
            pytest.skip(str(error))
        server.create()
        try:
            yield server.url
        finally:
            server.stop()
