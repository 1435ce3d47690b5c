"""Two server processes on one PostgreSQL, one Qdrant and one state folder: keys, budgets, collections and memories
agree."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import ROOT, Running, until
from tests.retrieval.qdrant_server import qdrant
from tests.server.tenants.postgresql import postgresql
from waver.benchmarks.processes import free_port, running
from waver.retrieval.embedder import Embedder
from waver.server.tenants.database import Database
from waver.server.tenants.grant import Grant
from waver.server.tenants.stored_keys import StoredKeys

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
TOKENS = 600
GRANTS: dict[str, Any] = {"root": {"role": "admin"}, "alice": {}, "bob": {}, "spender": {"tokens_per_day": TOKENS}}
TURNS = {"name": "simplemem", "extraction": "turns", "plan": "words", "window": 2, "stride": 2, "idle": 0.0,
         "consolidate": False}  # fmt: skip


@dataclass(frozen=True)
class Two:
    """The addresses of two servers, and the keys of both."""

    urls: tuple[str, str]
    keys: dict[str, str]

    def clients(self, name: str, stack: ExitStack) -> tuple[httpx.Client, httpx.Client]:
        """Return a key's clients of the first and the second server."""
        headers, limits = {"authorization": f"Bearer {self.keys[name]}"}, httpx.Limits(max_connections=64)
        made = [httpx.Client(base_url=url, headers=headers, timeout=60, limits=limits) for url in self.urls]
        first, second = (stack.enter_context(each) for each in made)
        return first, second


@pytest.fixture(scope="module")
def two(
    start: Callable[..., Running],
    tiny_config: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    embedder: Embedder,
) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("two")
    with postgresql() as database, qdrant(folder) as store:
        stored = StoredKeys(Database(database, folder))
        keys = {name: stored.add(name, Grant(**grant), "test")[1] for name, grant in GRANTS.items()}
        stored.database.close()
        content = {
            **tiny_config,
            "state": str(folder / "state"),
            "retrieval": {"store": "qdrant", "url": store},
            "keys": {"database": database, "refresh": 0.2},
        }
        one = start(config=content)
        one.runtime.library.embedders["all-MiniLM-L6-v2"] = embedder
        port, file = free_port(), folder / "other.yaml"
        file.write_text(yaml.safe_dump({**content, "server": {"port": port}}))
        command = [sys.executable, "-m", "waver", "serve", "--config", str(file)]
        path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with running(command, folder / "log", f"http://127.0.0.1:{port}/ready", 240, path):
            yield Two((one.url, f"http://127.0.0.1:{port}"), keys)
        one.server.should_exit = True  # it would go on to complain that its database is gone
        until(one.server.loop.is_closed, "the first server's end", 60)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def chat(client: httpx.Client, text: str, **more: Any) -> httpx.Response:
    body = {"model": "small", "policy": [], "messages": [{"role": "user", "content": text}], "max_tokens": 4,
            "ignore_eos": True, "temperature": 0, **more}  # fmt: skip
    return client.post("/v1/chat/completions", json=body)


def test_both_spend_one_budget_exactly(two: Two, stack: ExitStack) -> None:
    both, root = two.clients("spender", stack), two.clients("root", stack)
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda client: chat(client, "1 2 3"), itertools.islice(itertools.cycle(both), 64)))
    taken = [each.json()["usage"]["total_tokens"] for each in answers if each.status_code == 200]
    assert {each.status_code for each in answers} == {200, 429}
    assert len(set(taken)) == 1, "all requests are alike"
    assert len(taken) == TOKENS // taken[0], "as many as fit, over both servers"
    for client in root:
        shown: dict[str, int] = {}

        def settled(client: httpx.Client = client, shown: dict[str, int] = shown) -> bool:
            shown.update(client.get("/v1/admin/keys/spender").json()["usage"])
            return shown["running"] == 0

        until(settled, "the requests to be settled")
        assert (shown["day_tokens"], shown["day_requests"]) == (sum(taken), len(taken))


def test_keys_that_one_changes_hold_at_the_other(two: Two, stack: ExitStack) -> None:
    first, second = two.clients("root", stack)
    made = first.post("/v1/admin/keys", json={"name": "erin"}).json()["key"]
    headers = {"authorization": f"Bearer {made}"}

    def status() -> int:
        return httpx.get(f"{two.urls[1]}/v1/models", headers=headers, timeout=60).status_code

    until(lambda: status() == 200, "the new key", 5)
    assert second.delete("/v1/admin/keys/erin").status_code == 200
    until(lambda: httpx.get(f"{two.urls[0]}/v1/models", headers=headers, timeout=60).status_code == 401, "the end", 5)
    actions = [each["action"] for each in first.get("/v1/admin/audit").json()["data"]]
    assert actions[:2] == ["key.revoke", "key.add"]


def test_collections_are_the_same_at_both(two: Two, stack: ExitStack) -> None:
    alice, bob = two.clients("alice", stack), two.clients("bob", stack)
    assert alice[0].post("/v1/collections", json={"name": "boats"}).status_code == 200
    assert alice[1].post("/v1/collections", json={"name": "boats"}).status_code == 409
    document = {"id": "red", "text": "The red boat lies in Corton."}
    assert alice[1].post("/v1/collections/boats/documents", json={"documents": [document]}).status_code == 200
    for client in alice:
        assert client.get("/v1/collections/boats").json()["documents"] == 1
        found = client.post("/v1/collections/boats/search", json={"query": "Where does the boat lie?"}).json()
        assert [each["document"] for each in found["passages"]] == ["red"]
    for client in bob:
        assert client.get("/v1/collections/boats").status_code == 404
    assert alice[0].post("/v1/collections/boats/shares", json={"key": "bob"}).status_code == 200
    assert bob[1].get("/v1/collections/boats").json()["access"] == "read"
    assert alice[1].delete("/v1/collections/boats").status_code == 200
    assert [client.get("/v1/collections/boats").status_code for client in (*alice, *bob)] == [404] * 4


def test_both_write_one_document_at_a_time(two: Two, stack: ExitStack) -> None:
    alice = two.clients("alice", stack)
    assert alice[0].post("/v1/collections", json={"name": "shared"}).status_code == 200

    def write(number: int) -> int:
        body = {"documents": [{"id": "one", "text": f"Version {number} of the note."}]}
        return alice[number % 2].post("/v1/collections/shared/documents", json=body).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(write, range(12))) == {200}
    for client in alice:
        shown = client.get("/v1/collections/shared").json()
        assert (shown["documents"], shown["chunks"]) == (1, 1), "one of the versions, neither none nor two"
    alice[0].delete("/v1/collections/shared")


def test_what_one_remembers_the_other_recalls(two: Two, stack: ExitStack) -> None:
    alice = two.clients("alice", stack)
    assert chat(alice[0], "My red boat lies in Corton", user="anna", policy=[TURNS]).status_code == 200
    until(lambda: "Corton" in alice[1].get("/v1/memories", params={"user": "anna"}).text, "the memory")

    def recalled() -> bool:
        asked = chat(alice[1], "Where is the boat?", user="anna", policy=[TURNS | {"remember": False}]).json()
        return any("Corton" in each["text"] for each in asked["waver"]["memory"]["recalled"])

    until(recalled, "the recall", 30)
    assert alice[1].delete("/v1/memories", params={"user": "anna"}).json()["deleted"] > 0
    assert alice[0].get("/v1/memories", params={"user": "anna"}).text == ""
    asked = chat(alice[0], "Where is the boat?", user="anna", policy=[TURNS | {"remember": False}]).json()
    assert asked["waver"]["memory"]["recalled"] == []
