"""Measure how many requests a second a database of keys takes: `python -m waver.server.tenants.speed FOLDER [URL]`.

For each request a place is taken, tokens are reserved, and what was used is settled, in three transactions from eight
threads: with one key, whose requests wait for each other, and with a thousand. Use an empty database: it adds keys'
counters, and no keys.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from waver.server.tenants.budget import Budgets
from waver.server.tenants.database import Database
from waver.server.tenants.grant import Grant

THREADS = 8
SECONDS = 3.0


def rate(database: Database, keys: int, seconds: float = SECONDS) -> float:
    """Return the requests a second that a database takes, for so many keys."""
    budgets, grant = Budgets(database, "speed"), Grant(tokens_per_day=2**40)
    until = time.monotonic() + seconds

    def work(thread: int) -> int:
        done = 0
        while time.monotonic() < until:
            hold, key = f"{thread}-{done}", f"key{(thread * 1009 + done) % keys}"
            budgets.begin(hold, key, grant)
            budgets.reserve(hold, key, grant, 100, 100, True)
            budgets.end(hold, key, 50, 0, refund=False)
            done += 1
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS))) / seconds


def main() -> None:
    """Measure the database of the arguments; print the rates by the number of keys, as JSON."""
    folder, *url = sys.argv[1:]
    database = Database(url[0] if url else None, Path(folder))
    try:
        print(json.dumps({str(keys): rate(database, keys) for keys in (1, 1000)}))
    finally:
        database.close()


if __name__ == "__main__":
    main()
