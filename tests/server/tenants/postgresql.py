"""Start a PostgreSQL of the machine's own for a test, where there is one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PLACES = ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql*/bin")


@contextmanager
def postgresql() -> Iterator[str]:
    """Yield the address of a fresh database that listens on a socket; skips where none is installed."""
    found = shutil.which("initdb"), shutil.which("pg_ctl")
    if None in found:
        for place in (each for pattern in PLACES for each in Path("/").glob(pattern[1:])):
            found = shutil.which("initdb", path=place), shutil.which("pg_ctl", path=place)
    initdb, pg_ctl = found
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL is installed here (initdb, pg_ctl)")
    with tempfile.TemporaryDirectory(prefix="waver-pg-") as name:  # pytest's own folders are for root alone
        yield from _running(Path(name), initdb, pg_ctl)


def _running(folder: Path, initdb: str, pg_ctl: str) -> Iterator[str]:
    options: dict[str, int] = {}
    if os.getuid() == 0:  # it does not run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("there is no account 'postgres' to run PostgreSQL with")
        options = {"user": account.pw_uid, "group": account.pw_gid}
        os.chown(folder, account.pw_uid, account.pw_gid)
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(
            command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=120, **options
        )

    run(initdb, "-D", str(data), "-U", "waver", "-A", "trust", "--no-sync", "-E", "UTF8")
    settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=40"
    run(pg_ctl, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")
    try:
        yield f"postgresql://waver@/postgres?unix_sock={folder}/.s.PGSQL.5432"
    finally:
        run(pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop")
