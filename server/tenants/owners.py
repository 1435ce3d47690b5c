"""Keep the owners of collections and with whom these are shared, and tell what a request may do with them.

A collection that nobody owns is the server's own: made without keys, by an administrator, by the only plain key or on
the command line.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import sqlalchemy as sa

from waver.server.tenants import database as tables
from waver.server.tenants.audit import record
from waver.server.tenants.database import Database, insert_once
from waver.server.tenants.grant import Access, Identity

ALL = "*"
Level = int
NONE, READ, WRITE, OWN = range(4)
"""Levels of access to a collection, each with those before: none; search; change documents; delete and share."""
LEVELS: dict[Access, Level] = {"read": READ, "write": WRITE}
ABANDONED = 300.0
"""Seconds after which the owner of a collection that is not there loses its name: it was deleted elsewhere."""


@dataclass(frozen=True)
class Ownership:
    """The owner of a collection (None: the server), and with which keys it is shared (`*`: all)."""

    owner: str | None = None
    shares: dict[str, Access] = field(default_factory=dict)

    def level(self, who: Identity, name: str) -> Level:
        """Return what somebody may do with the collection of this name."""
        if who.admin or (self.owner is None and who.sole) or (self.owner is not None and self.owner == who.name):
            return OWN
        levels = [LEVELS[self.shares[each]] for each in (who.name, ALL) if each is not None and each in self.shares]
        if self.owner is None:
            granted = who.grant.collections
            levels += [LEVELS[granted[each]] for each in (name, ALL) if each in granted]
            levels += [READ] if who.kind == "plain" else []
        return max(levels, default=NONE)


class Owners:
    """The owners of all collections, in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, name: str) -> Ownership:
        """Return who owns a collection."""
        return (await self.all([name])).get(name, Ownership())

    async def all(self, names: Iterable[str] | None = None) -> dict[str, Ownership]:
        """Return the owners of collections by name, of all where no names are given; those that neither an owner nor a
        share is known of are left out."""
        wanted = None if names is None else list(names)

        def work(db: sa.Connection) -> dict[str, Ownership]:
            owned, shared = sa.select(tables.owners), sa.select(tables.shares)
            if wanted is not None:
                owned = owned.where(tables.owners.c.collection.in_(wanted))
                shared = shared.where(tables.shares.c.collection.in_(wanted))
            owner = {row.collection: row.owner for row in db.execute(owned)}
            shares: dict[str, dict[str, Access]] = {}
            for row in db.execute(shared):
                shares.setdefault(row.collection, {})[row.key] = row.access
            return {name: Ownership(owner.get(name), shares.get(name, {})) for name in {*owner, *shares}}

        return await self._database.reading(work, {})

    async def claim(self, name: str, owner: str, most: int | None = None) -> bool:
        """Make somebody the owner of a name that no collection has, and that is to become one; return whether it was
        free.

        Args:
            most: collections that one may own.

        Raises:
            TooMany: it owns that many.
        """

        def work(db: sa.Connection) -> bool:
            column = tables.owners.c
            left = sa.or_(column.created < time.time() - ABANDONED, column.owner == owner)
            if db.execute(sa.delete(tables.owners).where(column.collection == name, left)).rowcount:
                _unshare(db, name)
            if most is not None:
                # Locked together, so that two at once do not both take the last place (PostgreSQL).
                mine = sa.select(column.collection).where(column.owner == owner).with_for_update()
                count = len(db.execute(mine).all())
                if count >= most:
                    raise TooMany(f"The key '{owner}' may own {most} collections, and does: delete one of them.")
            return insert_once(tables.owners, db, collection=name, owner=owner, created=time.time())

        return await self._database.writing(work)

    async def drop(self, name: str, actor: str | None = None, request: str | None = None) -> None:
        """Forget the owner of a collection that was deleted or not made, and with whom it was shared. Where somebody
        else (`actor`) than the owner has deleted it, that is in the audit log."""

        def work(db: sa.Connection) -> None:
            column = tables.owners.c
            owner = db.execute(sa.select(column.owner).where(column.collection == name)).scalar()
            if actor is not None and owner not in (None, actor):
                record(db, actor, "collection.delete", name, {"owner": owner}, request)
            db.execute(sa.delete(tables.owners).where(column.collection == name))
            _unshare(db, name)

        if self._database.there:
            await self._database.writing(work)

    async def give(self, name: str, owner: str | None, actor: str, request: str | None = None) -> None:
        """Make somebody else the owner of a collection; None: the server."""

        def work(db: sa.Connection) -> None:
            db.execute(sa.delete(tables.owners).where(tables.owners.c.collection == name))
            if owner is not None:
                insert_once(tables.owners, db, collection=name, owner=owner, created=time.time())
            record(db, actor, "collection.owner", name, {"owner": owner}, request)

        await self._database.writing(work)

    async def share(self, name: str, key: str, access: Access | None, actor: str, request: str | None = None) -> bool:
        """Share a collection with a key (`*`: all); None ends it. Returns whether it was shared with it before."""

        def work(db: sa.Connection) -> bool:
            column = tables.shares.c
            chosen = sa.delete(tables.shares).where(column.collection == name, column.key == key)
            before = db.execute(chosen).rowcount > 0
            if access is not None:
                insert_once(tables.shares, db, collection=name, key=key, access=access)
            record(db, actor, "collection.share", name, {"key": key, "access": access}, request)
            return before

        return await self._database.writing(work)


class TooMany(ValueError):
    """A key owns as many collections as it may."""


def _unshare(db: sa.Connection, name: str) -> None:
    db.execute(sa.delete(tables.shares).where(tables.shares.c.collection == name))
