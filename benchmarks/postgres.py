"""Run a PostgreSQL of one's own, from the programs that the machine has, on a socket in a folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

PLACES = ("usr/lib/postgresql/*/bin", "opt/homebrew/opt/postgresql*/bin")
PORT = 5432


class Missing(Exception):
    """There is no PostgreSQL here, in a sentence."""


class Postgres:
    """A fresh database in a folder that nobody else uses; everybody who reaches the folder may use it."""

    def __init__(self, folder: Path) -> None:
        """Find the programs.

        Raises:
            Missing: there are none, or nobody who may run them.
        """
        self._folder, self._data = folder, folder / "data"
        found = shutil.which("initdb"), shutil.which("pg_ctl")
        if None in found:
            for place in (each for pattern in PLACES for each in Path("/").glob(pattern)):
                found = shutil.which("initdb", path=place), shutil.which("pg_ctl", path=place)
        if found[0] is None or found[1] is None:
            raise Missing("no PostgreSQL is installed here (initdb, pg_ctl)")
        self._initdb, self._pg_ctl = found[0], found[1]
        self._user: int | None = None
        self._group: int | None = None
        if os.getuid() == 0:  # it does not run as root
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                raise Missing("there is no account 'postgres' to run PostgreSQL with") from None
            self._user, self._group = account.pw_uid, account.pw_gid

    @property
    def url(self) -> str:
        return f"postgresql://waver@/postgres?unix_sock={self._folder}/.s.PGSQL.{PORT}"

    @property
    def process(self) -> int:
        """The id of the process that all others descend from."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def create(self) -> None:
        """Make the database, and start it."""
        if self._user is not None and self._group is not None:
            os.chown(self._folder, self._user, self._group)
        self._run(self._initdb, "-D", str(self._data), "-U", "waver", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = f"-k {self._folder} -c listen_addresses='' -c fsync=off -c max_connections=40"
        self._run(self._pg_ctl, "-D", str(self._data), "-w", "-l", str(self._folder / "log"), "-o", settings, "start")

    def forget(self) -> None:
        """Remove the lock files that a killed one has left: while its process is not reaped, they keep another one from
        starting."""
        for file in (self._data / "postmaster.pid", self._folder / f".s.PGSQL.{PORT}.lock"):
            file.unlink(missing_ok=True)

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: `smart`, `fast` or `immediate`."""
        self._run(self._pg_ctl, "-D", str(self._data), "-m", mode, "-w", "stop")

    def _run(self, *command: str) -> None:
        subprocess.run(
            command,
            check=True,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=120,
            user=self._user,
            group=self._group,
        )
