"""Add, change, revoke and rotate stored keys. Of a key the database holds its SHA-256 digest only.

Keys are drawn at random with 256 bits, so that no digest can be searched for: a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from waver.server.tenants import database as tables
from waver.server.tenants.audit import record
from waver.server.tenants.database import Database, insert_once
from waver.server.tenants.grant import Grant, Name

PREFIX = "sk-waver-"
VERSION = "keys"
NAME: TypeAdapter[str] = TypeAdapter(Name)


class KeyRefused(ValueError):
    """A key cannot be added or changed so. `code` is for machines."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class StoredKey:
    """A key as the database has it. Times are in seconds since 1970."""

    name: str
    digest: str
    hint: str
    grant: Grant
    created: float
    revoked: float | None = None
    previous: str | None = None
    previous_until: float | None = None

    def valid(self, now: float) -> bool:
        expires = self.grant.expires
        return self.revoked is None and (expires is None or now < expires.timestamp())

    def as_dict(self) -> dict[str, Any]:
        """Return what may be shown of it."""
        return {
            "object": "key",
            "name": self.name,
            "hint": self.hint,
            "created": _moment(self.created),
            "revoked": _moment(self.revoked),
            **self.grant.model_dump(mode="json"),
        }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def digest(secret: str | bytes) -> str:
    """Return the digest under which a key is stored."""
    return hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).hexdigest()


class StoredKeys:
    """The keys of a database. Every method blocks; `actor` is who asks, for the audit log.

    Raises:
        KeyRefused: there is no such key, or it cannot be so.
        DatabaseError: the database cannot be used.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def version(self) -> int:
        """Return a number that every change of a key increments."""
        query = sa.select(tables.versions.c.version).where(tables.versions.c.what == VERSION)
        return self.database.read(lambda db: db.execute(query).scalar() or 0, 0)

    def all(self) -> list[StoredKey]:
        """Return all keys, also those that have ended."""
        query = sa.select(tables.keys).order_by(tables.keys.c.name)
        return self.database.read(lambda db: [_key(row) for row in db.execute(query)], [])

    def get(self, name: str) -> StoredKey:
        """Return one key."""
        return self.database.read(lambda db: _found(db, name), None) or _missing(name)

    def add(self, name: str, grant: Grant, actor: str, request: str | None = None) -> tuple[StoredKey, str]:
        """Add a key; return it with its secret, which is nowhere else."""
        try:
            NAME.validate_python(name)
        except ValidationError:
            message = "name: at most 64 letters, digits, '_', '.' and '-'."
            raise KeyRefused(message, "invalid_name") from None
        secret = PREFIX + secrets.token_urlsafe(32)
        made = StoredKey(name, digest(secret), secret[-4:], grant, time.time())

        def work(db: sa.Connection) -> None:
            if (old := _found(db, name)) is not None:
                ended = " It was revoked, and its name stays taken: what it owned is no other key's."
                message = f"There is a key '{name}' already.{ended if old.revoked else ''}"
                raise KeyRefused(message, "key_exists")
            row = {"name": name, "digest": made.digest, "hint": made.hint, "created": made.created}
            db.execute(sa.insert(tables.keys).values(grant=grant.model_dump_json(exclude_unset=True), **row))
            record(db, actor, "key.add", name, grant.model_dump(mode="json", exclude_unset=True), request)

        self._change(work)
        return made, secret

    def change(self, name: str, changes: Mapping[str, Any], actor: str, request: str | None = None) -> StoredKey:
        """Change some fields of what a key may do."""

        def work(db: sa.Connection) -> StoredKey:
            old = _active(db, name)
            # Validated as a whole: fields that are not changed keep what they were given.
            grant = Grant.model_validate({**old.grant.model_dump(exclude_unset=True), **changes})
            text = grant.model_dump_json(exclude_unset=True)
            db.execute(sa.update(tables.keys).where(tables.keys.c.name == name).values(grant=text))
            shown = grant.model_dump(mode="json", include=set(changes))
            record(db, actor, "key.change", name, shown, request)
            return _found(db, name) or _missing(name)

        return self._change(work)

    def revoke(self, name: str, actor: str, request: str | None = None) -> StoredKey:
        """End a key. Its name stays taken, so that nobody inherits what it owned."""

        def work(db: sa.Connection) -> StoredKey:
            _active(db, name)
            values = {"revoked": time.time(), "previous": None, "previous_until": None}
            db.execute(sa.update(tables.keys).where(tables.keys.c.name == name).values(**values))
            record(db, actor, "key.revoke", name, {}, request)
            return _found(db, name) or _missing(name)

        return self._change(work)

    def rotate(self, name: str, actor: str, grace: float = 0.0, request: str | None = None) -> tuple[StoredKey, str]:
        """Give a key a new secret; the old one is good for `grace` seconds more."""
        secret = PREFIX + secrets.token_urlsafe(32)

        def work(db: sa.Connection) -> StoredKey:
            old = _active(db, name)
            kept = {"previous": old.digest, "previous_until": time.time() + grace}
            if grace <= 0:
                kept = {"previous": None, "previous_until": None}
            update = sa.update(tables.keys).where(tables.keys.c.name == name)
            db.execute(update.values(digest=digest(secret), hint=secret[-4:], **kept))
            record(db, actor, "key.rotate", name, {"grace": grace}, request)
            return _found(db, name) or _missing(name)

        return self._change(work), secret

    def _change(self, work: Any) -> Any:
        def whole(db: sa.Connection) -> Any:
            # Locks the row, so that changes are one after the other in PostgreSQL, too.
            if not insert_once(tables.versions, db, what=VERSION, version=1):
                counter = tables.versions.c
                db.execute(
                    sa.update(tables.versions).where(counter.what == VERSION).values(version=counter.version + 1)
                )
            return work(db)

        done = self.database.write(whole)
        self.database.harden()
        return done


def _key(row: Any) -> StoredKey:
    return StoredKey(
        row.name,
        row.digest,
        row.hint,
        Grant.model_validate(json.loads(row.grant)),
        row.created,
        row.revoked,
        row.previous,
        row.previous_until,
    )


def _found(db: sa.Connection, name: str) -> StoredKey | None:
    row = db.execute(sa.select(tables.keys).where(tables.keys.c.name == name)).first()
    return None if row is None else _key(row)


def _active(db: sa.Connection, name: str) -> StoredKey:
    found = _found(db, name) or _missing(name)
    if found.revoked is not None:
        raise KeyRefused(f"The key '{name}' was revoked.", "key_revoked")
    return found


def _missing(name: str) -> StoredKey:
    raise KeyRefused(f"There is no key '{name[:64]}'.", "key_not_found")
