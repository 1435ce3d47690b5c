"""Count what keys use, exactly: requests and tokens in a minute and a day, and requests at a time.

Every request holds a row while it runs, with the tokens that are reserved for it; what it made is charged when it ends.
Windows are those of the clock (UTC). All is in one database, so servers that share it share the budgets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from waver.server.tenants import database as tables
from waver.server.tenants.database import Database, insert_once
from waver.server.tenants.grant import Grant

Span = Literal["minute", "day"]
SECONDS: Mapping[Span, int] = {"minute": 60, "day": 86_400}
LEASE = 30.0
"""Seconds without a sign of life after which a server is taken for dead, and what it held is settled for it."""


@dataclass(frozen=True)
class Window:
    """A budget in its present window: the limit, what is left of it, and the seconds until it is whole again."""

    span: Span
    limit: int
    left: int
    resets: float


@dataclass(frozen=True)
class State:
    """The budgets of a key after a transaction; those without a limit are left out."""

    requests: tuple[Window, ...] = ()
    tokens: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Share:
    """The part of a budget, such as `tokens_per_day`, that a key has used in its present window; 1: all of it."""

    key: str
    budget: str
    used: float


class Spent(Exception):
    """A budget does not allow it. `what`: `requests`, `tokens` or `concurrent_requests`. `retry`: seconds after which
    there is room again; None where it is not known. `running`: requests of the key that run."""

    def __init__(
        self, what: str, key: str, message: str, state: State, retry: float | None = None, running: int = 0
    ) -> None:
        super().__init__(message)
        self.what, self.key, self.message, self.state = what, key, message, state
        self.retry, self.running = retry, running


class TooLarge(Exception):
    """One request wants more than its key's whole budget."""


@dataclass(frozen=True)
class Reserved:
    """Tokens that a request may use; None: others' reservations have to end before it can be said how many."""

    tokens: int | None
    state: State


class Budgets:
    """The budgets in a database. Every method blocks.

    Args:
        server: the name of this process among those that share the database.
    """

    def __init__(self, database: Database, server: str) -> None:
        self._database, self._server = database, server

    def begin(self, hold: str, key: str, grant: Grant) -> State:
        """Count a request, and hold a place for it.

        Raises:
            Spent: there is no room for it.
        """

        def work(db: sa.Connection) -> State:
            row, now = self._row(db, key)
            column = tables.holds.c
            running = db.execute(sa.select(sa.func.count()).where(column.key == key)).scalar_one()
            state = self._state(db, key, grant, row, now)
            if (most := grant.concurrent_requests) is not None and running >= most:
                message = f"{running} requests of this key are running, which is all that it may have at a time."
                raise Spent("concurrent_requests", key, message, state, running=running)
            if short := [window for window in state.requests if window.left < 1]:
                worst = max(short, key=lambda window: window.resets)
                message = f"This key may send {worst.limit} requests in a {worst.span}, and has."
                raise Spent("requests", key, message, state, worst.resets)
            counts = {"minute_requests": row["minute_requests"] + 1, "day_requests": row["day_requests"] + 1}
            self._set(db, key, counts)
            values = {"id": hold, "key": key, "server": self._server, "began": now, "tokens": 0, "made": 0}
            db.execute(sa.insert(tables.holds).values(**values))
            return self._state(db, key, grant, {**row, **counts}, now)

        return self._database.write(work)

    def reserve(self, hold: str, key: str, grant: Grant, need: int, least: int, patient: bool) -> Reserved:
        """Reserve `need` tokens for a request, or fewer, down to `least`, where no more are left.

        Args:
            patient: where others hold what is missing, say so rather than give less.

        Raises:
            Spent: even without the others there are fewer than `least`.
            TooLarge: there never will be.
        """

        def work(db: sa.Connection) -> Reserved:
            row, now = self._row(db, key)
            # The reservation belongs to the window in which it is made.
            db.execute(sa.update(tables.holds).where(tables.holds.c.id == hold).values(began=now, tokens=0))
            state = self._state(db, key, grant, row, now)
            for window in state.tokens:
                if least > window.limit:
                    raise TooLarge(
                        f"This request may take {least} tokens with its prompt, more than the {window.limit} that this "
                        f"key has in a {window.span}."
                    )
                if least > window.limit - row[f"{window.span}_tokens"]:
                    left = max(window.limit - row[f"{window.span}_tokens"], 0)
                    message = (
                        f"This request may take {least} tokens with its prompt, and {left} are left of the "
                        f"{window.limit} that this key has in a {window.span}."
                    )
                    raise Spent("tokens", key, message, state, window.resets)
            free = min((window.left for window in state.tokens), default=need)
            given = min(need, free)
            others = any(w.left < w.limit - row[f"{w.span}_tokens"] for w in state.tokens)
            if given < least or (given < need and others and patient):
                return Reserved(None, state)
            db.execute(sa.update(tables.holds).where(tables.holds.c.id == hold).values(tokens=given))
            return Reserved(given, self._state(db, key, grant, row, now))

        return self._database.write(work)

    def end(self, hold: str, key: str, used: int, reported: int, refund: bool) -> None:
        """End a request and charge it for what it used.

        Args:
            reported: what was charged already if the row is gone: another server took this one for dead. refund: it
                does not count, as nothing was done for it.
        """

        def work(db: sa.Connection) -> None:
            row, _ = self._row(db, key, sweep=False)
            found = db.execute(sa.select(tables.holds).where(tables.holds.c.id == hold)).first()
            began = row["now"] if found is None else found.began
            db.execute(sa.delete(tables.holds).where(tables.holds.c.id == hold))
            self._charge(db, key, row, began, used if found else max(used - reported, 0), refund)

        self._database.write(work)

    def charge(self, key: str, tokens: int) -> None:
        """Charge a key's present windows for tokens that no request has reserved; a budget may go below nothing."""

        def work(db: sa.Connection) -> None:
            row, now = self._row(db, key, sweep=False)
            self._charge(db, key, row, now, tokens, False)

        self._database.write(work)

    def beat(self, made: Mapping[str, int]) -> None:
        """Say that this server lives, and what its running requests have made so far, by hold."""

        def work(db: sa.Connection) -> None:
            now = self._database.now(db)
            if not insert_once(tables.servers, db, id=self._server, seen=now):
                db.execute(sa.update(tables.servers).where(tables.servers.c.id == self._server).values(seen=now))
            for hold, tokens in made.items():
                db.execute(sa.update(tables.holds).where(tables.holds.c.id == hold).values(made=tokens))

        self._database.write(work)

    def state(self, key: str, grant: Grant) -> tuple[State, int, dict[str, int]]:
        """Return a key's budgets, how many of its requests run, and what it has used in the present windows."""

        def work(db: sa.Connection) -> tuple[State, int, dict[str, int]]:
            row, now = self._row(db, key)
            running = db.execute(sa.select(sa.func.count()).where(tables.holds.c.key == key)).scalar_one()
            used = {name: row[name] for name in row if name.endswith(("_requests", "_tokens"))}
            return self._state(db, key, grant, row, now), running, used

        return self._database.write(work)

    def shares(self, grants: Mapping[str, Grant]) -> list[Share]:
        """Return what each of some keys has used of each of its budgets, the fullest first."""
        limited = {name: grant for name, grant in grants.items() if any(_limits(grant))}
        if not limited:
            return []

        def work(db: sa.Connection) -> list[Share]:
            now, spent = self._database.now(db), {row.key: row for row in db.execute(sa.select(tables.spent))}
            found = [_share(name, spent.get(name), now, *limit) for name in limited for limit in _limits(limited[name])]
            return sorted(found, key=lambda each: -each.used)

        return self._database.read(work, [])

    def _row(self, db: sa.Connection, key: str, sweep: bool = True) -> tuple[dict[str, Any], float]:
        """Lock a key's counters, begin their windows anew where the time has come, and return them with the time."""
        zero = {"minute": 0, "minute_requests": 0, "minute_tokens": 0, "day": 0, "day_requests": 0, "day_tokens": 0}
        insert_once(tables.spent, db, key=key, **zero)
        query = sa.select(tables.spent).where(tables.spent.c.key == key).with_for_update()
        row = dict(db.execute(query).mappings().one())
        now = self._database.now(db)
        for span, seconds in SECONDS.items():
            # A clock that was set back does not give a window twice.
            if (start := int(now // seconds)) > row[span]:
                row |= {span: start, f"{span}_requests": 0, f"{span}_tokens": 0}
        row["now"] = now
        self._set(db, key, row)
        if sweep and (dead := self._dead(db, key, now)):
            for each in dead:
                db.execute(sa.delete(tables.holds).where(tables.holds.c.id == each.id))
                self._charge(db, key, row, each.began, each.made, False)
        return row, now

    def _dead(self, db: sa.Connection, key: str, now: float) -> list[Any]:
        """Find what servers hold that are dead: they gave no sign of life for a lease, which one that had nothing to do
        need not have given before this request."""
        holds, servers = tables.holds, tables.servers
        joined = holds.outerjoin(servers, holds.c.server == servers.c.id)
        silent = sa.and_(sa.func.coalesce(servers.c.seen, 0.0) < now - LEASE, holds.c.began < now - LEASE)
        query = sa.select(holds).select_from(joined).where(holds.c.key == key, holds.c.server != self._server)
        return list(db.execute(query.where(silent)))

    def _charge(
        self, db: sa.Connection, key: str, row: dict[str, Any], began: float, tokens: int, refund: bool
    ) -> None:
        """Charge tokens to the windows in which they were reserved; those that are over do not matter any more."""
        for span, seconds in SECONDS.items():
            if int(began // seconds) >= row[span]:
                row[f"{span}_tokens"] += tokens
                row[f"{span}_requests"] = max(row[f"{span}_requests"] - refund, 0)
        self._set(db, key, row)

    def _set(self, db: sa.Connection, key: str, values: Mapping[str, Any]) -> None:
        known = {name: value for name, value in values.items() if name in tables.spent.c and name != "key"}
        db.execute(sa.update(tables.spent).where(tables.spent.c.key == key).values(**known))

    def _state(self, db: sa.Connection, key: str, grant: Grant, row: Mapping[str, Any], now: float) -> State:
        requests, tokens = [], []
        for span, seconds in SECONDS.items():
            resets = max((row[span] + 1) * seconds - now, 0.0)
            if (limit := getattr(grant, f"requests_per_{span}")) is not None:
                requests.append(Window(span, limit, max(limit - row[f"{span}_requests"], 0), resets))
            if (limit := getattr(grant, f"tokens_per_{span}")) is not None:
                column, start = tables.holds.c, row[span] * seconds
                held = sa.select(sa.func.coalesce(sa.func.sum(column.tokens), 0))
                held = held.where(column.key == key, column.began >= start)
                left = limit - row[f"{span}_tokens"] - int(db.execute(held).scalar_one())
                tokens.append(Window(span, limit, max(left, 0), resets))
        return State(tuple(requests), tuple(tokens))


def _limits(grant: Grant) -> Iterator[tuple[str, Span, int]]:
    """Yield the budgets that a key has: `requests` or `tokens`, the window, and the limit."""
    for what in ("requests", "tokens"):
        for span in SECONDS:
            if (limit := getattr(grant, f"{what}_per_{span}")) is not None:
                yield what, span, limit


def _share(key: str, row: Any, now: float, what: str, span: Span, limit: int) -> Share:
    current = row is not None and getattr(row, span) >= int(now // SECONDS[span])
    used = getattr(row, f"{span}_{what}") if current else 0
    return Share(key, f"{what}_per_{span}", used / limit)


def headers(state: State) -> dict[str, str]:
    """Return the headers by which OpenAI's clients know what is left, of the window with the least."""
    found = {}
    for what, windows in (("requests", state.requests), ("tokens", state.tokens)):
        if windows:
            tight = min(windows, key=lambda window: (window.left, -window.resets))
            found[f"x-ratelimit-limit-{what}"] = str(tight.limit)
            found[f"x-ratelimit-remaining-{what}"] = str(tight.left)
            found[f"x-ratelimit-reset-{what}"] = duration(tight.resets)
    return found


def duration(seconds: float) -> str:
    """Write a time as these headers do: `6m0s`, `1h2m3s`."""
    whole = math.ceil(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{whole % 60}s"
