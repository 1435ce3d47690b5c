"""The database of keys, owners, budgets and the audit log: an SQLite file, or a PostgreSQL that several servers share.

Transactions run in threads of their own. A file is made when something is first written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from waver.extras import how_to_install

T = TypeVar("T")
BUSY_SECONDS = 30
"""Time that a transaction waits for another one."""
CONNECTIONS = 4
"""Transactions at a time in PostgreSQL. In SQLite they are one after the other anyway."""

tables = sa.MetaData()
keys = sa.Table(
    "waver_keys",
    tables,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("hint", sa.String(8), nullable=False),
    sa.Column("grant", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("revoked", sa.Float),
    sa.Column("previous", sa.String(64)),
    sa.Column("previous_until", sa.Float),
)
versions = sa.Table(
    "waver_versions",
    tables,
    sa.Column("what", sa.String(16), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)
audit = sa.Table(
    "waver_audit",
    tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(128), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("request", sa.String(128)),
)
owners = sa.Table(
    "waver_owners",
    tables,
    sa.Column("collection", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
shares = sa.Table(
    "waver_shares",
    tables,
    sa.Column("collection", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("access", sa.String(8), nullable=False),
)
spent = sa.Table(
    "waver_spent",
    tables,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("minute", sa.BigInteger, nullable=False),
    sa.Column("minute_requests", sa.BigInteger, nullable=False),
    sa.Column("minute_tokens", sa.BigInteger, nullable=False),
    sa.Column("day", sa.BigInteger, nullable=False),
    sa.Column("day_requests", sa.BigInteger, nullable=False),
    sa.Column("day_tokens", sa.BigInteger, nullable=False),
)
holds = sa.Table(
    "waver_holds",
    tables,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("key", sa.String(64), nullable=False, index=True),
    sa.Column("server", sa.String(32), nullable=False),
    sa.Column("began", sa.Float, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("made", sa.BigInteger, nullable=False),
)
servers = sa.Table(
    "waver_servers",
    tables,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("seen", sa.Float, nullable=False),
)


class DatabaseError(ValueError):
    """The database cannot be used. The message names no address and no password."""


class Database:
    """One database. `read` and `write` block; `reading` and `writing` do the same in a thread."""

    def __init__(self, url: str | None, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Set up without opening anything.

        Args:
            url: as SQLAlchemy writes it; None: the file `keys.sqlite3` in `folder`.

        Raises:
            DatabaseError: it is neither SQLite nor PostgreSQL.
        """
        try:
            made = sa.make_url(url) if url else sa.URL.create("sqlite", database=str(folder / "keys.sqlite3"))
        except SQLAlchemyError:
            raise DatabaseError("keys.database is no address of a database, such as postgresql://…/waver") from None
        if made.drivername in ("postgresql", "postgres"):
            made = made.set(drivername="postgresql+pg8000")
        self._file = Path(made.database) if made.get_backend_name() == "sqlite" and made.database else None
        if self._file is None and made.drivername != "postgresql+pg8000":
            raise DatabaseError("keys.database should be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")
        self._url, self._clock = made, clock
        self._lock = Lock()
        self._engine: sa.Engine | None = None
        self._closed = False
        self._threads = ThreadPoolExecutor(1 if self._file else CONNECTIONS, thread_name_prefix="keys")

    @property
    def shared(self) -> bool:
        """Return whether it is PostgreSQL."""
        return self._file is None

    @property
    def there(self) -> bool:
        """Return whether there is a database; an SQLite file is made by the first write."""
        return self._file is None or self._file.exists()

    def now(self, db: sa.Connection) -> float:
        """Return the time, in seconds: the database's own where several servers share it."""
        if self.shared and self._clock is time.time:
            return float(db.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
        return self._clock()

    def read(self, work: Callable[[sa.Connection], T], absent: T) -> T:
        """Do work that changes nothing; `absent` where there is no database yet.

        Raises:
            DatabaseError: it cannot be used.
        """
        return self._do(work, reads=True) if self.there else absent

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Do work in one transaction, which excludes all others in SQLite.

        Raises:
            DatabaseError: it cannot be used.
        """
        return self._do(work, reads=False)

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do blocking work that uses this database in one of its threads.

        Raises:
            DatabaseError: it is closed.
        """
        if self._closed:
            raise DatabaseError("The database of keys is closed: the server stops.")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def reading(self, work: Callable[[sa.Connection], T], absent: T) -> T:
        if not self.there:
            return absent
        return await self.in_thread(self.read, work, absent)

    async def writing(self, work: Callable[[sa.Connection], T]) -> T:
        return await self.in_thread(self.write, work)

    def harden(self) -> None:
        """Have the disk hold what was written: SQLite leaves it to the system for a while. Blocks."""
        if self._engine is not None and self._file is not None:
            with self._engine.connect() as db:
                connection: Any = db.connection.dbapi_connection
                connection.execute("PRAGMA wal_checkpoint(FULL)")

    def close(self) -> None:
        self._closed = True
        self._threads.shutdown()
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    def _do(self, work: Callable[[sa.Connection], T], reads: bool) -> T:
        try:
            engine = self._open()
            with engine.connect().execution_options(waver_reads=reads) as db, db.begin():
                return work(db)
        except (SQLAlchemyError, OSError) as error:
            kind = type(getattr(error, "orig", None) or error).__name__
            raise DatabaseError(f"The database of keys cannot be used ({kind}).") from error

    def _open(self) -> sa.Engine:
        with self._lock:
            if self._engine is None:
                engine = self._sqlite(self._file) if self._file else self._postgresql()
                with engine.begin() as db:
                    if self.shared:  # two servers that start together
                        db.execute(sa.text("SELECT pg_advisory_xact_lock(7702)"))
                    tables.create_all(db)
                self._engine = engine
            return self._engine

    def _postgresql(self) -> sa.Engine:
        try:
            options = {"timeout": BUSY_SECONDS}
            return sa.create_engine(
                self._url, pool_size=CONNECTIONS, max_overflow=0, pool_pre_ping=True, connect_args=options
            )
        except ModuleNotFoundError:
            raise DatabaseError(f"PostgreSQL needs the package pg8000: {how_to_install('postgres')}") from None

    def _sqlite(self, file: Path) -> sa.Engine:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.touch(mode=0o600)
        engine = sa.create_engine(self._url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

        @sa.event.listens_for(engine, "connect")
        def _settings(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # transactions are begun below
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")

        @sa.event.listens_for(engine, "begin")
        def _begin(db: sa.Connection) -> None:
            reads = db.get_execution_options().get("waver_reads", False)
            db.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

        return engine


def insert_once(table: sa.Table, db: sa.Connection, **values: Any) -> bool:
    """Insert a row unless there is one with its primary key; return whether it was inserted."""
    from sqlalchemy.dialects import postgresql, sqlite

    dialect = sqlite if db.dialect.name == "sqlite" else postgresql
    return db.execute(dialect.insert(table).values(**values).on_conflict_do_nothing()).rowcount > 0
