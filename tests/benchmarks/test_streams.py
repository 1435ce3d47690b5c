"""Streams that are left in every way that a socket allows leave nothing behind in a server."""

from __future__ import annotations

from collections import Counter

from tests.conftest import Running, until
from waver.benchmarks.streams import WAYS, mistreat, requests


async def test_nothing_is_left_of_streams_that_are_left(running: Running) -> None:
    assert running.idle(30)
    made = requests(42, seed=3)
    assert Counter(request.way for request in made) == dict.fromkeys(WAYS, 6)
    seen = await mistreat(running.url, made)
    assert sum(seen.values()) == len(made)
    assert seen["whole: 200"] == 6
    assert seen["half-closed: closed"] == 6, "a client that closes its side has left"
    assert not [name for name in seen if name.endswith((": late", ": 500", ": refused"))]
    assert running.idle(60)
    until(lambda: not running.runtime.answers, "the end of all answers")
    with running.http() as http:
        assert http.get("/ready").status_code == 200
