"""Admit a bounded number of requests, queue a bounded number behind them, fairly between keys, and refuse the rest."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from waver.server.errors import APIError
from waver.server.tenants.grant import Identity, current

SMOOTHING = 0.2
"""Weight of the newest request in the mean time that one takes."""
LONGEST_WAIT = 60
"""Seconds that a client is told to wait at most: the longest that OpenAI's SDK heeds."""


@dataclass(eq=False)
class Waiter:
    """A request in the queue, and the queue's share that it belongs to."""

    share: Share
    turn: asyncio.Future[None]


class Share:
    """The requests of one key that wait, and the virtual time at which its last one was admitted."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.weight = 1.0
        self.waiting: deque[Waiter] = deque()
        self.due = 0.0


class Admission:
    """A limiter: at most `running` requests are decoded at a time, and at most `waiting` are queued.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996) with a cost of one for each request: while several keys wait,
    each is admitted in proportion to its weight, and its own requests first in, first out. Where the queue is full, the
    newest request of the key that has most of it, by weight, makes room for one of another key.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._most_running, self._most_waiting = running, waiting
        self._shares: dict[str, Share] = {}
        self._now = 0.0
        self._seconds = 0.0
        self.running = 0
        self.waiting = 0

    def resize(self, running: int, waiting: int) -> None:
        """Set other limits. What runs and waits goes on, also where there is more of it than the new limits allow."""
        self._most_running, self._most_waiting = running, waiting
        self._admit()

    @asynccontextmanager
    async def slot(self, who: Identity | None = None) -> AsyncIterator[None]:
        """Hold a slot while a request is decoded, for who sent it: unless told, for whom this task works.

        Raises:
            APIError: 429, the queue is full.
        """
        if self.running < self._most_running and not self.waiting:
            self.running += 1
        else:
            await self._queue(current() if who is None else who)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            yield
        finally:
            self._seconds += SMOOTHING * (clock() - began - self._seconds) if self._seconds else clock() - began
            self.running -= 1
            self._admit()

    def check(self, who: Identity) -> None:
        """Check that there is a slot or a place in the queue for a request of a key.

        Raises:
            APIError: 429, the queue is full, and no other key has more of it.
        """
        if self.waiting < self._most_waiting or (self.running < self._most_running and not self.waiting):
            return
        share = self._shares.get(who.name or "")
        waiting = len(share.waiting) if share else 0
        largest = self._largest()
        if largest is None or len(largest.waiting) / largest.weight <= (waiting + 1) / who.grant.weight:
            raise self._full()

    async def _queue(self, who: Identity) -> None:
        """Wait until a slot is this request's."""
        self.check(who)
        if self.waiting >= self._most_waiting:
            self._make_room()
        share = self._share(who)
        waiter = Waiter(share, asyncio.get_running_loop().create_future())
        share.waiting.append(waiter)
        self.waiting += 1
        try:
            await waiter.turn
        except BaseException:
            if waiter in share.waiting:
                self._remove(waiter)
            elif waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self.running -= 1  # it was admitted, and left at that moment
                self._admit()
            raise

    def _share(self, who: Identity) -> Share:
        key = who.name or ""
        share = self._shares.setdefault(key, Share(key))
        share.weight = who.grant.weight
        if not share.waiting:  # no credit for the time in which it had nothing to do
            share.due = max(share.due, self._now)
        return share

    def _admit(self) -> None:
        """Give free slots away: to the key whose turn comes first."""
        while self.running < self._most_running and self.waiting:
            share = min((each for each in self._shares.values() if each.waiting), key=lambda each: each.due)
            waiter = share.waiting[0]
            self._now = share.due
            share.due += 1 / share.weight
            self._remove(waiter)
            if not waiter.turn.done():  # else its client has left
                self.running += 1
                waiter.turn.set_result(None)

    def _remove(self, waiter: Waiter) -> None:
        waiter.share.waiting.remove(waiter)
        self.waiting -= 1
        if not self.waiting:
            self._shares.clear()

    def _largest(self) -> Share | None:
        """Return the share with the most of the queue, by weight."""
        return max(self._shares.values(), key=lambda each: len(each.waiting) / each.weight, default=None)

    def _make_room(self) -> None:
        """Refuse the newest request of the key with the most of the queue."""
        largest = self._largest()
        if largest is not None:
            waiter = largest.waiting[-1]
            self._remove(waiter)
            if not waiter.turn.done():
                waiter.turn.set_exception(self._full())

    def _full(self) -> APIError:
        """Return the 429 of a full queue: there is room again when it has moved on, as long as requests take now."""
        message = f"{self.running} requests are running and {self.waiting} waiting, which is all there is room for."
        seconds = self._seconds * max(self.waiting, 1) / self._most_running
        wait = min(max(math.ceil(seconds), 1), LONGEST_WAIT)
        return APIError(429, message, code="queue_full", headers={"retry-after": str(wait)})
