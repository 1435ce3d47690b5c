"""Budgets in the database: exact among threads and among processes, by the clock's windows, and after a crash."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.server.tenants.postgresql import postgresql
from waver.server.tenants import database as tables
from waver.server.tenants import speed
from waver.server.tenants.budget import LEASE, Budgets, Spent, TooLarge, duration, headers
from waver.server.tenants.database import Database
from waver.server.tenants.grant import Grant

NOON = 1_800_000_000.0 // 86_400 * 86_400 + 43_200 + 30
"""Half a minute past noon."""
SPENDER = f"""
import sys
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from waver.server.tenants.budget import Budgets, Spent
from waver.server.tenants.database import Database
from waver.server.tenants.grant import Grant

url, name = sys.argv[1:]
database = Database(url, Path(), clock=lambda: {NOON})
budgets, grant = Budgets(database, name), Grant(requests_per_day=50, tokens_per_day=200)

def one(number):
    hold = f"{{name}}-{{number}}"
    try:
        budgets.begin(hold, "alice", grant)
    except Spent:
        return 0
    try:
        tokens = budgets.reserve(hold, "alice", grant, 5, 5, True).tokens
    except Spent:
        tokens = None
    budgets.end(hold, "alice", tokens or 0, 0, refund=tokens is None)
    return tokens or 0

with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(one, range(64))))
"""


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path, clock: Clock) -> Iterator[Database]:
    made = Database(None, tmp_path, clock)
    yield made
    made.close()


@pytest.fixture
def budgets(database: Database) -> Budgets:
    return Budgets(database, "one")


def use(budgets: Budgets, hold: str, grant: Grant, tokens: int) -> None:
    budgets.begin(hold, "alice", grant)
    assert budgets.reserve(hold, "alice", grant, tokens, tokens, True).tokens == tokens
    budgets.end(hold, "alice", tokens, 0, refund=False)


def test_64_at_once_spend_exactly_what_there_is(budgets: Budgets) -> None:
    grant = Grant(requests_per_minute=20)

    def one(number: int) -> bool:
        try:
            budgets.begin(str(number), "alice", grant)
        except Spent:
            return False
        return True

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(one, range(64))) == 20
    _, running, used = budgets.state("alice", grant)
    assert (running, used["minute_requests"]) == (20, 20)


def spend_from_two_processes(url: str, folder: Path) -> tuple[int, dict[str, int]]:
    run = [sys.executable, "-c", SPENDER, url]
    two = [subprocess.Popen([*run, name], stdout=subprocess.PIPE, text=True) for name in ("one", "two")]
    spent = sum(int(each.communicate(timeout=120)[0]) for each in two)
    assert [each.returncode for each in two] == [0, 0]
    database = Database(url, folder, lambda: NOON)
    try:
        used = Budgets(database, "three").state("alice", Grant())[2]
    finally:
        database.close()
    return spent, used


def test_two_processes_share_one_sqlite_file(tmp_path: Path) -> None:
    spent, used = spend_from_two_processes(f"sqlite:///{tmp_path / 'shared.sqlite3'}", tmp_path)
    assert spent == used["day_tokens"] == 200
    assert used["day_requests"] == 40, "requests for which no tokens were left do not count"


def test_two_processes_share_one_postgresql() -> None:
    with postgresql() as url:
        spent, used = spend_from_two_processes(url, Path())
        database = Database(url, Path())
        assert database.read(database.now, 0.0) == pytest.approx(time.time(), abs=60), "the database's own clock"
        database.close()
    assert spent == used["day_tokens"] == 200
    assert used["day_requests"] == 40


def test_windows_are_the_clocks(budgets: Budgets, clock: Clock) -> None:
    grant = Grant(requests_per_minute=1, tokens_per_minute=10, requests_per_day=3)
    use(budgets, "a", grant, 10)
    with pytest.raises(Spent) as refused:
        budgets.begin("b", "alice", grant)
    assert (refused.value.what, refused.value.retry) == ("requests", pytest.approx(30))
    told = headers(refused.value.state)
    assert told["x-ratelimit-remaining-requests"] == told["x-ratelimit-remaining-tokens"] == "0"
    assert told["x-ratelimit-reset-tokens"] == "30s"
    for hold in ("b", "c"):
        clock.now += 60
        use(budgets, hold, grant, 10)
    clock.now += 60
    with pytest.raises(Spent, match="3 requests in a day") as refused:
        budgets.begin("d", "alice", grant)
    assert refused.value.retry == pytest.approx(86_400 - clock.now % 86_400)
    clock.now += 86_400
    use(budgets, "d", grant, 10)
    clock.now -= 86_400 + 120  # a clock that is set back
    with pytest.raises(Spent):
        budgets.begin("e", "alice", grant)


def test_what_is_reserved_comes_back(budgets: Budgets) -> None:
    grant = Grant(tokens_per_minute=100)
    for hold in "abc":
        budgets.begin(hold, "alice", grant)
    assert budgets.reserve("a", "alice", grant, 80, 80, True).tokens == 80
    # 30 are missing only as long as `a` may still use them: nothing is refused below the limit.
    assert budgets.reserve("b", "alice", grant, 50, 50, True).tokens is None
    budgets.end("a", "alice", 10, 0, refund=False)
    assert budgets.reserve("b", "alice", grant, 50, 50, True).tokens == 50
    # The client that left is charged for what was made.
    budgets.end("b", "alice", 7, 0, refund=False)
    assert budgets.state("alice", grant)[2]["minute_tokens"] == 17
    with pytest.raises(Spent, match="83 are left of the 100"):
        budgets.reserve("c", "alice", grant, 84, 84, True)
    assert budgets.reserve("c", "alice", grant, 84, 2, True).tokens == 83, "cut to what is left"
    with pytest.raises(TooLarge):
        budgets.reserve("c", "alice", grant, 101, 101, True)


def test_an_answer_is_not_cut_while_others_may_give_back(budgets: Budgets) -> None:
    grant = Grant(tokens_per_minute=100)
    for hold in "ab":
        budgets.begin(hold, "alice", grant)
    budgets.reserve("a", "alice", grant, 60, 60, True)
    assert budgets.reserve("b", "alice", grant, 500, 5, patient=True).tokens is None
    assert budgets.reserve("b", "alice", grant, 500, 5, patient=False).tokens == 40


def test_requests_at_a_time(budgets: Budgets) -> None:
    grant = Grant(concurrent_requests=2)
    for hold in "ab":
        budgets.begin(hold, "alice", grant)
    with pytest.raises(Spent) as refused:
        budgets.begin("c", "alice", grant)
    assert (refused.value.what, refused.value.running) == ("concurrent_requests", 2)
    budgets.begin("c", "bob", grant)
    budgets.end("a", "alice", 0, 0, refund=True)
    budgets.begin("c2", "alice", grant)


def test_what_a_dead_server_held_is_settled_for_it(database: Database, clock: Clock) -> None:
    grant = Grant(tokens_per_day=100, concurrent_requests=1)
    dead, alive = Budgets(database, "dead"), Budgets(database, "alive")
    dead.begin("a", "alice", grant)
    dead.reserve("a", "alice", grant, 90, 90, True)
    dead.beat({"a": 30})
    clock.now += LEASE - 1
    with pytest.raises(Spent):
        alive.begin("b", "alice", grant)
    clock.now += 2
    alive.begin("b", "alice", grant)
    assert alive.state("alice", grant)[2]["day_tokens"] == 30
    # It was only slow: it is charged for the rest, once.
    dead.end("a", "alice", 45, 30, refund=False)
    assert alive.state("alice", grant)[2]["day_tokens"] == 45


def test_keys_do_not_share_budgets(budgets: Budgets, database: Database) -> None:
    grant = Grant(requests_per_minute=1)
    budgets.begin("a", "alice", grant)
    budgets.begin("b", "bob", grant)
    count = sa.select(sa.func.count()).select_from(tables.holds)
    assert database.read(lambda db: db.execute(count).scalar(), 0) == 2


def test_durations_are_written_as_clients_read_them() -> None:
    assert [duration(each) for each in (0.2, 60, 360, 3723, 86_400)] == ["1s", "1m0s", "6m0s", "1h2m3s", "24h0m0s"]


def test_the_speed_of_a_database_is_measured(tmp_path: Path) -> None:
    measured = Database(None, tmp_path)
    try:
        assert speed.rate(measured, 2, 0.2) > 0
        used = sum(Budgets(measured, "one").state(key, Grant())[2]["day_tokens"] for key in ("key0", "key1"))
        assert used >= 50
        assert used % 50 == 0
    finally:
        measured.close()
