"""Tenants, an administrator and plain keys over HTTP: nobody sees, searches, changes or deletes what is another's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.conftest import Running, until
from waver.retrieval.embedder import Embedder
from waver.server.logs import configure_logs
from waver.server.tenants.database import Database
from waver.server.tenants.grant import Grant
from waver.server.tenants.stored_keys import StoredKeys

DOCUMENT = {"id": "boat", "text": "The red boat lies in Corton."}
L_RAG = {"name": "l_rag", "gate": "always"}
GRANTS: dict[str, dict[str, Any]] = {
    "root": {"role": "admin"},
    "alice": {"max_collections": 3},
    "bob": {},
    "carol": {"models": ["small"], "policies": ["l_rag"], "collections": {"handbook": "read"}, "max_tokens": 4,
              "max_n": 2},
    "dave": {"presets": ["coin"], "models": []},
    "watch": {"role": "monitor"},
}  # fmt: skip


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def stored(state: Path) -> StoredKeys:
    return StoredKeys(Database(None, state))


@pytest.fixture(scope="module")
def keys(stored: StoredKeys) -> dict[str, str]:
    return {name: stored.add(name, Grant(**grant), "test")[1] for name, grant in GRANTS.items()}


@pytest.fixture(scope="module")
def server(
    start: Callable[..., Running], tiny_config: dict[str, Any], state: Path, keys: dict[str, str], embedder: Embedder
) -> Iterator[Running]:
    assert keys
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAVER_TENANT_KEYS", "first:sk-first,second:sk-second")
        presets = {**tiny_config["presets"], "careful": [{**L_RAG, "collection": "handbook"}]}
        more = {"state": str(state), "presets": presets, "retrieval": {"path": str(state / "collections")},
                "keys": {"refresh": 0.2}}  # fmt: skip
        running = start(config=more, api_keys_env="WAVER_TENANT_KEYS")
        running.runtime.library.embedders["all-MiniLM-L6-v2"] = embedder
        yield running


@pytest.fixture(scope="module")
def http(server: Running, keys: dict[str, str]) -> Iterator[dict[str, httpx.Client]]:
    secrets = {**keys, "first": "sk-first", "second": "sk-second"}
    clients = {name: server.http(headers={"authorization": f"Bearer {key}"}) for name, key in secrets.items()}
    yield clients
    for each in clients.values():
        each.close()


@pytest.fixture(scope="module")
def private(http: dict[str, httpx.Client]) -> str:
    """A collection of alice's, with a document in it."""
    filled(http["alice"], "private")
    return "private"


@pytest.fixture(scope="module")
def handbook(http: dict[str, httpx.Client]) -> str:
    """A collection of the server's own, which a preset uses."""
    filled(http["root"], "handbook")
    return "handbook"


def filled(client: httpx.Client, name: str) -> None:
    assert client.post("/v1/collections", json={"name": name}).status_code == 200
    assert client.post(f"/v1/collections/{name}/documents", json={"documents": [DOCUMENT]}).status_code == 200


def chat(client: httpx.Client, **more: Any) -> httpx.Response:
    body = {"model": "small", "policy": [], "messages": [{"role": "user", "content": "Where is the boat?"}],
            "max_tokens": 2, "ignore_eos": True, **more}  # fmt: skip
    return client.post("/v1/chat/completions", json=body)


def names(client: httpx.Client) -> set[str]:
    return {each["name"] for each in client.get("/v1/collections").json()["data"]}


def attempts(client: httpx.Client, name: str) -> dict[str, int]:
    """Try everything on a collection; return the statuses."""
    path = f"/v1/collections/{name}"
    return {
        "see": client.get(path).status_code,
        "search": client.post(f"{path}/search", json={"query": "boat"}).status_code,
        "look up": chat(client, policy=[{**L_RAG, "collection": name}]).status_code,
        "overwrite": client.post(f"{path}/documents", json={"documents": [DOCUMENT]}).status_code,
        "delete a document": client.delete(f"{path}/documents/none").status_code,
        "share": client.post(f"{path}/shares", json={"key": "*"}).status_code,
        "unshare": client.delete(f"{path}/shares/*").status_code,
        "delete": client.delete(path).status_code,
    }


def test_a_stranger_can_do_nothing_with_a_collection(http: dict[str, httpx.Client], private: str) -> None:
    for name in ("bob", "carol", "first", "second"):
        assert private not in names(http[name])
        assert set(attempts(http[name], private).values()) == {404}, name
        # What is not there is refused in the same words.
        hidden, absent = (http[name].get(f"/v1/collections/{each}").json() for each in (private, "nothing"))
        assert json.dumps(hidden) == json.dumps(absent).replace("nothing", private)
        assert http[name].post("/v1/collections", json={"name": private}).status_code in (403, 409)
    shown = http["alice"].get(f"/v1/collections/{private}").json()
    assert (shown["access"], shown["owner"], shown["documents"]) == ("own", "alice", 1)
    assert private in names(http["root"])
    assert http["root"].post(f"/v1/collections/{private}/search", json={"query": "boat"}).status_code == 200


def test_a_share_lets_search_and_no_more(http: dict[str, httpx.Client], private: str) -> None:
    shares = f"/v1/collections/{private}/shares"
    assert http["alice"].post(shares, json={"key": "nobody"}).status_code == 404
    shown = http["alice"].post(shares, json={"key": "bob"})
    assert shown.json()["shares"] == {"bob": "read"}
    read = {"see": 200, "search": 200, "look up": 200, "overwrite": 403, "delete a document": 403, "share": 403,
            "unshare": 403, "delete": 403}  # fmt: skip
    assert attempts(http["bob"], private) == read
    seen = http["bob"].get(f"/v1/collections/{private}").json()
    assert seen["access"] == "read"
    assert not {"owner", "shares"} & seen.keys()
    written = [{**L_RAG, "collection": private, "documents": ["boat"], "summary": "written"}]
    refused = chat(http["bob"], policy=written)
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "policy[0].summary")
    assert set(attempts(http["carol"], private).values()) == {404}
    http["alice"].post(shares, json={"key": "bob", "access": "write"})
    assert attempts(http["bob"], private) == read | {"overwrite": 200, "delete a document": 404}
    assert http["alice"].delete(f"{shares}/bob").status_code == 200
    assert set(attempts(http["bob"], private).values()) == {404}
    assert http["alice"].get(f"/v1/collections/{private}").json()["documents"] == 1


def test_the_servers_own_collections(http: dict[str, httpx.Client], handbook: str) -> None:
    read = {"see": 200, "search": 200, "look up": 200, "overwrite": 403, "delete a document": 403, "share": 403,
            "unshare": 403, "delete": 403}  # fmt: skip
    assert attempts(http["carol"], handbook) == read
    assert attempts(http["first"], handbook) == read
    assert set(attempts(http["bob"], handbook).values()) == {404}
    # Through the preset that uses it, and only so, it is there for all.
    assert chat(http["bob"], policy="careful").status_code == 200
    assert chat(http["bob"], model="waver/careful", policy=None).status_code == 200
    assert http["root"].delete(f"/v1/collections/{handbook}").status_code == 200
    for name in ("bob", "first"):
        refused = http[name].post("/v1/collections", json={"name": handbook})
        assert refused.status_code == 403, "passages of one key's in all other keys' answers"
    filled(http["root"], handbook)


def test_a_name_is_free_again_when_its_collection_is_deleted(http: dict[str, httpx.Client]) -> None:
    assert http["first"].post("/v1/collections", json={"name": "note"}).status_code == 200
    assert http["second"].post("/v1/collections", json={"name": "note"}).status_code == 409
    assert http["second"].delete("/v1/collections/note").status_code == 404
    assert http["first"].delete("/v1/collections/note").status_code == 200
    assert http["second"].post("/v1/collections", json={"name": "note"}).status_code == 200
    assert http["first"].get("/v1/collections/note").status_code == 404
    given = http["root"].post("/v1/admin/collections/note/owner", json={"owner": "first"})
    assert given.json()["owner"] == "first"
    assert http["second"].get("/v1/collections/note").status_code == 404
    assert http["first"].delete("/v1/collections/note").status_code == 200


def test_a_key_owns_as_many_collections_as_it_may(http: dict[str, httpx.Client], private: str) -> None:
    for name in ("two", "three"):
        assert http["alice"].post("/v1/collections", json={"name": name}).status_code == 200
    assert http["alice"].post("/v1/collections", json={"name": "four"}).status_code == 403
    for name in ("two", "three"):
        assert http["alice"].delete(f"/v1/collections/{name}").status_code == 200


def test_memories_facts_and_responses_are_apart(http: dict[str, httpx.Client]) -> None:
    alice, bob = http["alice"], http["bob"]
    fact = alice.post("/v1/facts", json={"facts": [{"text": "The boat is red."}]}).json()["data"][0]["id"]
    alice.post("/v1/memories", json={"memories": [{"content": "The boat is red."}]})
    memory = json.loads(alice.get("/v1/memories").text.splitlines()[0])["id"]
    body = {"model": "small", "policy": [], "input": "Hello", "max_output_tokens": 2}
    response = alice.post("/v1/responses", json=body).json()["id"]
    paths = (f"/v1/facts/{fact}", f"/v1/memories/{memory}", f"/v1/responses/{response}")
    for path in paths:
        assert bob.get(path).status_code == 404, path
        assert bob.delete(path).status_code == 404, path
    assert bob.get("/v1/facts").text == bob.get("/v1/memories").text == ""
    assert bob.post("/v1/memories/search", json={"query": "boat"}).json()["memories"] == []
    assert bob.delete("/v1/facts").json()["deleted"] == bob.delete("/v1/memories").json()["deleted"] == 0
    assert bob.post("/v1/responses", json={**body, "previous_response_id": response}).status_code == 404
    for path in paths:
        assert alice.get(path).status_code == 200, path


def test_models_presets_and_policies(http: dict[str, httpx.Client]) -> None:
    carol, dave = http["carol"], http["dave"]
    assert {each["id"] for each in carol.get("/v1/models").json()["data"]} == {"small"}
    assert chat(carol, policy="careful").status_code == 200
    assert chat(carol, model="waver/careful", policy=None).status_code == 404, "the large engine would write"
    assert chat(carol).status_code == 200
    assert chat(carol, model="large").status_code == 404
    assert chat(carol, policy="frugal").status_code == 404
    assert chat(carol, policy=[{"name": "ead", "small": "small", "large": "large"}]).status_code == 404
    assert chat(carol, policy=[{"name": "top_n_sigma"}]).status_code == 403
    for field, value in (("n", 3), ("max_tokens", 5)):
        refused = chat(carol, **{field: value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert chat(carol, max_tokens=None).json()["usage"]["completion_tokens"] == 4
    assert carol.post("/v1/tokenize", json={"model": "large", "prompt": "a"}).status_code == 404
    assert carol.post("/v1/embeddings", json={"input": "a"}).status_code == 404
    uncertain = {"messages": [{"role": "user", "content": "a"}], "model": "small", "max_tokens": 2}
    assert carol.post("/v1/uncertainty", json=uncertain).status_code == 403
    assert {each["id"] for each in dave.get("/v1/models").json()["data"]} == {"waver/coin"}
    assert chat(dave, policy="coin").status_code == chat(dave, model="waver/coin", policy=None).status_code == 200
    for refused in (chat(dave), chat(dave, policy="frugal"), chat(dave, model=None, policy=None)):
        assert refused.status_code == 404


def test_admin_routes_and_metrics_by_role(server: Running, http: dict[str, httpx.Client]) -> None:
    described = server.server.config.app.openapi()["paths"]  # type: ignore[union-attr]
    admin = [(method, path) for path in described if path.startswith("/v1/admin") for method in described[path]]
    assert len(admin) >= 8
    for method, path in admin:
        for address in (path, f"/{path.removeprefix('/v1/')}", f"/{path}"):
            for name in ("alice", "first", "watch"):
                asked = http[name].request(method.upper(), f"{server.url}{address.format(name='alice')}", json={})
                assert asked.status_code == 403, (name, method, address)
    assert http["alice"].get("/metrics").status_code == 403
    for name in ("root", "watch", "first"):
        assert http[name].get("/metrics").status_code == 200
    for path in ("/v1/models", "/v1/collections", "/docs"):
        assert http["watch"].get(path).status_code == 403
    assert chat(http["watch"]).status_code == 403


def test_keys_come_change_and_go_without_a_restart(
    server: Running, http: dict[str, httpx.Client], stored: StoredKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form="json")
    root = http["root"]

    def status(key: str) -> int:
        return httpx.get(f"{server.v1}/models", headers={"authorization": f"Bearer {key}"}, timeout=60).status_code

    made = root.post("/v1/admin/keys", json={"name": "erin", "requests_per_minute": 5, "weight": 2})
    first = made.json()["key"]
    assert made.json()["hint"] == first[-4:]
    assert status(first) == 200
    assert root.post("/v1/admin/keys", json={"name": "erin"}).status_code == 409
    assert root.post("/v1/admin/keys", json={"name": "a/b"}).json()["error"]["param"] == "name"
    for wrong in ({"weight": 0}, {"role": "god"}, {"models": "small"}, {"unknown": 1}):
        refused = root.post("/v1/admin/keys", json={"name": "frank", **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(wrong)))
    second = root.post("/v1/admin/keys/erin/rotate", json={"grace": 600}).json()["key"]
    assert [status(first), status(second)] == [200, 200]
    third = root.post("/v1/admin/keys/erin/rotate", json={}).json()["key"]
    assert [status(first), status(second), status(third)] == [401, 401, 200]
    assert root.post("/v1/admin/keys/erin", json={"expires": "2020-01-01T00:00:00Z"}).json()["weight"] == 2
    assert status(third) == 401
    assert root.post("/v1/admin/keys/erin", json={"expires": None}).status_code == 200
    assert status(third) == 200
    # By another process: a new key holds at once or when the keys were last looked at, a revocation a moment later.
    _, fourth = stored.add("grace", Grant(), "command line")
    until(lambda: status(fourth) == 200, "the new key", 2)
    stored.revoke("grace", "command line")
    until(lambda: status(fourth) == 401, "the revocation", 2)
    assert root.delete("/v1/admin/keys/erin").json() == {"object": "key.revoked", "name": "erin", "revoked": True}
    assert status(third) == 401
    assert root.post("/v1/admin/keys", json={"name": "erin"}).status_code == 409
    assert root.get("/v1/admin/audit", params={"before": 2**64}).status_code == 400
    assert root.get("/v1/admin/keys/erin").json()["revoked"]
    logged = capsys.readouterr().err
    assert '"path": "/v1/admin/keys/erin/rotate"' in logged
    written = root.get("/v1/admin/audit").text + root.get("/v1/admin/keys").text + logged
    assert "key.rotate" in written
    assert not any(secret in written for secret in (first, second, third, fourth))
    entry = next(each for each in root.get("/v1/admin/audit").json()["data"] if each["action"] == "key.add")
    assert entry.keys() == {"object", "id", "time", "actor", "action", "subject", "detail", "request"}


def test_the_database_holds_no_key(state: Path, keys: dict[str, str], http: dict[str, httpx.Client]) -> None:
    assert chat(http["alice"]).status_code == 200
    files = [each.read_bytes() for each in state.glob("keys.sqlite3*")]
    assert files
    assert not any(key.encode() in content for key in keys.values() for content in files)
    assert (state / "keys.sqlite3").stat().st_mode & 0o077 == 0


def test_the_name_of_the_key_is_in_logs_and_metrics(
    server: Running, http: dict[str, httpx.Client], keys: dict[str, str]
) -> None:
    with capture_logs() as lines:
        assert chat(http["bob"]).status_code == 200
        until(lambda: any(each["event"] == "request" for each in lines), "the log line")
    assert [each["key"] for each in lines if each["event"] == "request"] == ["bob"]
    assert not any(key in str(lines) for key in keys.values())
    shown = http["watch"].get("/metrics").text
    assert 'waver_key_requests_total{key="bob",status="200"}' in shown
    assert 'waver_key_tokens_total{key="bob",kind="completion"}' in shown
    assert not any(key in shown for key in keys.values())
    server.runtime.metrics._most_keys = len(server.runtime.metrics._keys)
    http["dave"].get("/v1/policies")
    chat(http["second"])
    assert server.runtime.metrics.key_label("somebody") == "other"
