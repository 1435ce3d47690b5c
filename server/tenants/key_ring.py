"""Recognise keys: those of the environment, and those of the database, of which a copy is kept and refreshed."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from waver.server.keys import ApiKey
from waver.server.tenants.database import Database, DatabaseError
from waver.server.tenants.grant import EVERYBODY, Grant, Identity
from waver.server.tenants.stored_keys import StoredKey, StoredKeys

log = structlog.get_logger("waver")


@dataclass(frozen=True)
class Entry:
    """The digest of a key that was valid when the ring was refreshed, its holder, and when it ends (None: never)."""

    digest: bytes
    identity: Identity
    until: float | None = None


class KeyRing:
    """All keys of a server. Changes of the database are seen within `seconds`, and at once by `refresh`."""

    def __init__(
        self,
        plain: Sequence[ApiKey],
        database: Database,
        plain_role: Literal["inference", "admin"] = "inference",
        seconds: float = 1.0,
    ) -> None:
        self.stored = StoredKeys(database)
        grant, sole = Grant(role=plain_role), len({key.name for key in plain}) == 1
        self._plain = [
            Entry(hashlib.sha256(key.secret.encode()).digest(), Identity(key.name, grant, "plain", sole))
            for key in plain
        ]
        self._seconds = seconds
        self._secret = secrets.token_bytes(32)
        self._entries: dict[bytes, Entry] = {}
        self._names: frozenset[str] = frozenset()
        self._version = 0
        self._closed = bool(plain)
        self._checked = float("-inf")
        self._refreshing = asyncio.Lock()
        self._fill([])

    @classmethod
    def loaded(
        cls, plain: Sequence[ApiKey], database: Database, plain_role: Literal["inference", "admin"], seconds: float
    ) -> KeyRing:
        """Make a ring and read the keys; blocks.

        Raises:
            DatabaseError: they cannot be read.
        """
        ring = cls(plain, database, plain_role, seconds)
        ring.load()
        return ring

    @property
    def asks(self) -> bool:
        """Return whether requests need a key: there is one, or there has been one."""
        return self._closed

    @property
    def names(self) -> frozenset[str]:
        """Return the names of all keys that are or were stored, and of the plain ones."""
        return self._names

    @property
    def grants(self) -> dict[str, Grant]:
        """Return what the holders of all valid stored keys may do, by name."""
        found = (each.identity for each in self._entries.values())
        return {who.name: who.grant for who in found if who.name is not None and who.kind == "stored"}

    def grant(self, name: str) -> Grant | None:
        """Return what the holder of a name may do; None where no valid key has it."""
        return next((each.identity.grant for each in self._entries.values() if each.identity.name == name), None)

    def load(self) -> None:
        """Read the keys; blocks.

        Raises:
            DatabaseError: they cannot be read.
        """
        version = self.stored.version()
        if version != self._version:
            self._fill(self.stored.all())
            self._version = version

    async def refresh(self) -> None:
        """Read the keys if they were changed. Where the database cannot be read, those that are known stay good."""
        async with self._refreshing:
            self._checked = time.monotonic()
            try:
                await self.stored.database.in_thread(self.load)
            except DatabaseError as error:
                log.error("keys cannot be read again", reason=str(error))

    async def watch(self) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            await self.refresh()

    async def identify(self, secret: bytes) -> Identity | None:
        """Return the holder of a key; None if nobody holds it.

        What is not known is looked for in the database again, once in `seconds` for all requests together: a key that
        was just added works at once, and forged ones cause no load.
        """
        found = self._find(secret)
        if found is None and time.monotonic() - self._checked >= self._seconds:
            await self.refresh()
            found = self._find(secret)
        return found

    def _find(self, secret: bytes) -> Identity | None:
        """Look a key up. The place in the table is a digest under a secret of this process, and the entry is compared
        in equal time: how long it takes says nothing of any key."""
        digest = hashlib.sha256(secret).digest()
        entry = self._entries.get(self._place(digest), _NOBODY)
        same = hmac.compare_digest(digest, entry.digest)
        return entry.identity if same and (entry.until is None or time.time() < entry.until) else None

    def _place(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")

    def _fill(self, keys: Sequence[StoredKey]) -> None:
        now, entries = time.time(), []
        for key in keys:
            if not key.valid(now):
                continue
            ends = None if key.grant.expires is None else key.grant.expires.timestamp()
            identity = Identity(key.name, key.grant, "stored")
            entries.append(Entry(bytes.fromhex(key.digest), identity, ends))
            if key.previous is not None:
                until = min(key.previous_until or 0.0, ends or float("inf"))
                entries.append(Entry(bytes.fromhex(key.previous), identity, until))
        self._entries = {self._place(each.digest): each for each in (*entries, *self._plain)}
        plain = {entry.identity.name for entry in self._plain}
        self._names = frozenset({key.name for key in keys} | {name for name in plain if name})
        # A server that has asked for keys never opens again by losing the last one.
        self._closed = self._closed or bool(keys)


_NOBODY = Entry(b"\0" * 32, EVERYBODY)
"""The entry that keys which are not in the table are compared with; no key has this digest."""
