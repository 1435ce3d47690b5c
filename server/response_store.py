"""Keep responses in memory, so that a conversation can go on from them: the latest ones, by owner."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from waver.server.sse import dump


@dataclass(frozen=True)
class StoredResponse:
    """A response as it was answered, and the chat's messages up to and with its answer, without its instructions."""

    response: dict[str, Any]
    messages: Sequence[Mapping[str, Any]]


class ResponseStore:
    """The latest `most` responses, of at most `size` bytes of JSON together; the oldest go first. Every method may be
    called from any thread."""

    def __init__(self, most: int, size: int) -> None:
        self.most = most
        self._left = size
        self._lock = Lock()
        self._kept: OrderedDict[tuple[str | None, str], tuple[StoredResponse, int]] = OrderedDict()

    def put(self, owner: str | None, stored: StoredResponse) -> None:
        """Keep a response of an owner, the name of a key."""
        size = len(dump(stored.response)) + len(dump(stored.messages))
        with self._lock:
            self._kept[owner, stored.response["id"]] = stored, size
            self._left -= size
            while self._kept and (len(self._kept) > self.most or self._left < 0):
                self._left += self._kept.popitem(last=False)[1][1]

    def get(self, owner: str | None, name: str) -> StoredResponse | None:
        """Return a response of an owner; None where it has none of that name."""
        with self._lock:
            found = self._kept.get((owner, name))
        return found and found[0]

    def discard(self, owner: str | None, name: str) -> None:
        """Forget a response."""
        with self._lock:
            if found := self._kept.pop((owner, name), None):
                self._left += found[1]
