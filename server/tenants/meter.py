"""Hold requests to the budgets of their keys while they run: reserve before the work, and settle after it."""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from typing import TypeVar

import structlog

from waver.server.errors import NO_RETRY, APIError, invalid
from waver.server.tenants.budget import Budgets, Share, Spent, State, TooLarge, headers
from waver.server.tenants.database import Database, DatabaseError
from waver.server.tenants.grant import Grant, Identity

log = structlog.get_logger("waver")
T = TypeVar("T")

BEAT = 5.0
"""Seconds between two signs of life in the database, and between two attempts to settle what could not be."""
PATIENCE = 10.0
"""Seconds for which a request waits for others of its key to give back what they reserved, before it takes less."""
POLL = 0.25
"""Seconds between two looks at what other servers hold."""
SMOOTHING = 0.2
"""Weight of the newest request in the mean time that those of a key take."""
SDK_WAITS = 60.0
"""Longest `Retry-After` that OpenAI's SDK heeds; beyond it is told not to retry by itself."""


class Hold:
    """The place of one request in its key's budgets. It ends once everybody who works for the request has let go."""

    def __init__(self, meter: Meter, key: str, grant: Grant, state: State) -> None:
        self.id = secrets.token_hex(16)
        self.key, self.grant = key, grant
        self.state = state
        """The budgets, as they were when they were last looked at."""
        self.began = time.monotonic()
        self.used = 0
        """Tokens that the request has used so far."""
        self.reported = 0
        """Of these, how many the database was told of."""
        self.failed = False
        """True if nothing was done for the request: then it does not count."""
        self._meter = meter
        self._users = 1

    def keep(self) -> None:
        """Keep the place for one more task."""
        self._users += 1

    def let_go(self) -> None:
        """Give the place up; the last one ends it."""
        self._users -= 1
        if not self._users:
            self._meter.end(self)

    async def reserve(self, need: int, least: int) -> int:
        """Reserve tokens: as many as are needed, or fewer where no more are left, but at least `least`.

        Where other requests of the key hold what is missing, wait until they have ended: what they do not use is free
        again, so nothing is refused below the limit.

        Raises:
            APIError: 429, the budget is spent; 400, it would never do; 503, the database cannot be used.
        """
        if not self.grant.limits_tokens:
            return need
        return await self._meter.reserve(self, need, least)

    async def reserve_exactly(self, tokens: int) -> int:
        """Reserve tokens of which the number is known, and return it.

        Raises:
            APIError: as `reserve`.
        """
        return await self.reserve(tokens, tokens)


class Meter:
    """The budgets of all keys, for the requests of this server."""

    def __init__(self, database: Database, grants: Callable[[], Mapping[str, Grant]] = dict) -> None:
        """`grants` returns what the stored keys may do, by name."""
        self._grants = grants
        self.shares: list[Share] = []
        """Parts of budgets that keys have used, the fullest first, as `look` found them."""
        self._server = secrets.token_hex(16)
        self.budgets = Budgets(database, self._server)
        self._database = database
        self._running: dict[str, Hold] = {}
        self._unsettled: set[Hold] = set()
        self._owed: Counter[str] = Counter()
        """Tokens of work outside of requests that are not charged yet, by key."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, asyncio.Lock] = {}
        self._changed = asyncio.Event()
        self._seconds: dict[str, float] = {}

    async def begin(self, who: Identity) -> Hold | None:
        """Count a request of somebody; None where nothing is counted.

        Raises:
            APIError: 429, there is no room for it; 503, the database cannot be used.
        """
        if who.name is None or not who.grant.metered:
            return None
        hold = Hold(self, who.name, who.grant, State())
        try:
            hold.state = await self._do(self.budgets.begin, hold.id, hold.key, hold.grant)
        except Spent as error:
            raise refused(error, self._wait(error)) from None
        self._running[hold.id] = hold
        return hold

    async def reserve(self, hold: Hold, need: int, least: int) -> int:
        clock = asyncio.get_running_loop().time
        began = clock()
        async with self._turns.setdefault(hold.key, asyncio.Lock()):  # first in, first out
            while True:
                self._changed.clear()
                patient = clock() - began < PATIENCE
                try:
                    asked = (hold.id, hold.key, hold.grant, need, least, patient)
                    found = await self._do(self.budgets.reserve, *asked)
                except Spent as error:
                    raise refused(error, self._wait(error)) from None
                except TooLarge as error:
                    raise invalid(str(error), "max_tokens", "tokens_over_limit") from None
                hold.state = found.state
                if found.tokens is not None:
                    return found.tokens
                try:
                    async with asyncio.timeout(POLL):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    def end(self, hold: Hold) -> None:
        """Settle a request, in a task of its own: the client does not wait for it."""
        self._running.pop(hold.id, None)
        took, known = time.monotonic() - hold.began, self._seconds.get(hold.key)
        self._seconds[hold.key] = took if known is None else known + SMOOTHING * (took - known)
        self._unsettled.add(hold)
        self._begin(self._settle(hold))

    def charge(self, key: str, tokens: int) -> None:
        """Charge a key for work outside of its requests, in a task of its own."""
        self._owed[key] += tokens
        self._begin(self._pay())

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pay(self) -> None:
        while self._owed:
            key, tokens = self._owed.popitem()
            try:
                await self._do(self.budgets.charge, key, tokens)
            except APIError as error:
                self._owed[key] += tokens
                log.error("work outside of requests could not be charged yet", key=key, reason=error.message)
                return

    async def _settle(self, hold: Hold) -> None:
        refund = hold.failed and not hold.used
        try:
            await self._do(self.budgets.end, hold.id, hold.key, hold.used, hold.reported, refund)
        except APIError as error:
            log.error("a request's use could not be charged yet", key=hold.key, reason=error.message)
            return
        self._unsettled.discard(hold)
        self._changed.set()

    async def watch(self) -> None:
        """Look at budgets, and tell the database that this server lives while it holds anything, until cancelled."""
        while True:
            await asyncio.sleep(BEAT)
            await self.look()
            if not self._tasks:
                await self._pay()
            for hold in [each for each in self._unsettled if not self._tasks]:
                await self._settle(hold)
            if self._running or self._unsettled:
                made = {hold.id: hold.used for hold in self._running.values() if hold.used > hold.reported}
                try:
                    await self._do(self.budgets.beat, made)
                except APIError as error:
                    log.error("the database of keys cannot be told what is used", reason=error.message)
                    continue
                for name, tokens in made.items():
                    if (running := self._running.get(name)) is not None:
                        running.reported = tokens

    async def look(self) -> None:
        """Look at what keys have used of their budgets, for the metrics."""
        try:
            self.shares = await self._database.in_thread(self.budgets.shares, self._grants())
        except DatabaseError as error:
            self.shares = []
            log.error("the budgets of keys cannot be read", reason=str(error))

    async def aclose(self) -> None:
        """Settle what has ended."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _wait(self, error: Spent) -> float:
        """Return the seconds after which to come again: when the window is over, or, where the key has too many
        requests at a time, when one of them should have ended, as long as they take now."""
        if error.retry is not None:
            return error.retry
        return min(self._seconds.get(error.key, 0.0) / max(error.running, 1), SDK_WAITS)

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._database.in_thread(work, *arguments)
        except DatabaseError as error:
            message = f"{error} No request of a key with limits can be let in."
            raise APIError(503, message, code="keys_unavailable", headers={"retry-after": "5"}) from error


def refused(error: Spent, seconds: float) -> APIError:
    """Return the 429 of a budget that is spent."""
    wait = max(math.ceil(seconds), 1)
    told = {**headers(error.state), "retry-after": str(wait), **(NO_RETRY if wait > SDK_WAITS else {})}
    return APIError(429, error.message, code="rate_limit_exceeded", headers=told)


_hold: ContextVar[Hold | None] = ContextVar("waver_hold", default=None)


def current_hold() -> Hold | None:
    """Return the place of the request that this task works for; None where nothing is counted."""
    return _hold.get()


def set_hold(hold: Hold | None) -> None:
    _hold.set(hold)


def cache_salt(name: str | None, own: str = "") -> str:
    """Return the salt of a key's prompts in the caches of engines, with a request's own; none without keys."""
    if name is None and not own:
        return ""
    return hashlib.blake2b(f"{name or ''}\0{own}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
