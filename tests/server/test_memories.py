"""Memories over HTTP: two users of two keys, what each of them gets back, erasure, pinned policies, and a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.conftest import Running, until
from waver.cli import app
from waver.retrieval.embedder import Embedder

KEYS = {"alice": "sk-alice", "bob": "sk-bob"}
TURNS = {"name": "simplemem", "extraction": "turns", "plan": "words", "window": 2, "stride": 2, "idle": 0.0,
         "consolidate": False}  # fmt: skip


WHOLE = {"name": "memgas", "extraction": "words", "filter": "none", "idle": 0.0}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def config(state: Path) -> dict[str, Any]:
    return {
        "state": str(state),
        "retrieval": {"path": str(state / "collections")},
        "pinned": {"bob": [TURNS]},
        "default_preset": None,
    }


@pytest.fixture(scope="module")
def server(start: Callable[..., Running], config: dict[str, Any], embedder: Embedder) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAVER_MEMORY_KEYS", ",".join(f"{name}:{key}" for name, key in KEYS.items()))
        running = start(config=config, api_keys_env="WAVER_MEMORY_KEYS")
        running.runtime.library.embedders["all-MiniLM-L6-v2"] = embedder
        yield running


def caller(server: Running, key: str = "alice") -> httpx.Client:
    return server.http(headers={"authorization": f"Bearer {KEYS[key]}"})


def chat(http: httpx.Client, text: str, user: str | None, policy: Any = (TURNS,), **more: Any) -> Any:
    body = {"model": "small", "messages": [{"role": "user", "content": text}], "max_tokens": 4, "user": user,
            "policy": list(policy), "ignore_eos": True, "seed": 1, **more}  # fmt: skip
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def exported(http: httpx.Client, user: str | None, **params: Any) -> list[dict[str, Any]]:
    response = http.get("/v1/memories", params={"user": user, **params} if user else params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def contents(http: httpx.Client, user: str | None) -> list[str]:
    return [each["content"] for each in exported(http, user) if each["object"] == "memory"]


def test_what_one_says_comes_back_to_them_alone(server: Running) -> None:
    with caller(server) as alice, caller(server, "bob") as bob:
        chat(alice, "My red boat lies in Corton", "anna")
        until(lambda: bool(contents(alice, "anna")), "the memory")
        assert contents(alice, "anna")[0] == "user: My red boat lies in Corton"
        asks = [TURNS | {"remember": False}]
        recalled = chat(alice, "Where is the boat?", "anna", asks)["waver"]["memory"]["recalled"]
        assert "user: My red boat lies in Corton" in [each["text"].partition(": ")[2] for each in recalled]
        for http, user in ((alice, "eve"), (alice, None), (bob, "anna")):
            assert exported(http, user) == []
        for user in ("eve", None):
            assert chat(alice, "Where is the boat?", user, asks)["waver"]["memory"]["recalled"] == []
        found = alice.post("/v1/memories/search", json={"query": "boat", "user": "anna"}).json()["memories"]
        assert found[0]["content"] == "user: My red boat lies in Corton"
        assert alice.post("/v1/memories/search", json={"query": "boat", "user": "eve"}).json() == {"memories": []}


def test_users_that_are_no_short_texts_are_told_apart(server: Running) -> None:
    with caller(server) as http:
        for user in ("x" * 600, "x" * 601):
            http.post("/v1/memories", json={"memories": [{"content": f"{len(user)}"}], "user": user})
        assert contents(http, "x" * 600) == ["600"]
        chat(http, "I am number seven", 7)  # type: ignore[arg-type]
        until(lambda: bool(contents(http, "7")), "the memory")
        assert exported(http, None) == []


def test_export_import_and_erasure(server: Running) -> None:
    with caller(server) as http:
        units = [{"content": f"Fact number {i}", "time": "2026-01-02", "persons": ["Anna"]} for i in range(3)]
        added = http.post("/v1/memories", json={"memories": units, "user": "carl"}).json()
        assert added == {"object": "memories.added", "added": 3, "known": 0}
        lines = exported(http, "carl")
        assert [each["content"] for each in lines] == ["Fact number 0", "Fact number 1", "Fact number 2"]
        again = http.post("/v1/memories", json={"memories": lines, "user": "dora"}).json()
        assert again["added"] == 3
        assert http.post("/v1/memories", json={"memories": lines, "user": "carl"}).json()["known"] == 3
        first = lines[0]["id"]
        assert http.get(f"/v1/memories/{first}", params={"user": "carl"}).json()["content"] == "Fact number 0"
        for user in ("dora", "eve"):
            assert http.get(f"/v1/memories/{first}", params={"user": user}).status_code == 404
            assert http.delete(f"/v1/memories/{first}", params={"user": user}).status_code == 404
        assert http.delete(f"/v1/memories/{first}", params={"user": "carl"}).json()["deleted"]
        assert http.delete("/v1/memories", params={"user": "carl", "before": "2020-01-01"}).json()["deleted"] == 0
        assert http.delete("/v1/memories", params={"user": "carl", "after": "2020-01-01"}).json()["deleted"] == 2
        assert exported(http, "carl") == []
        assert len(exported(http, "dora")) == 3


def test_a_conversation_is_brought_and_found(server: Running) -> None:
    said = [{"speaker": "Anna", "text": "I moved to Oslo", "time": "2023-05-07T10:00:00Z", "source": "D1:1"},
            {"speaker": "Ben", "text": "How is the weather there?", "source": "D1:2"}]  # fmt: skip
    with caller(server) as http:
        body = {"turns": said, "user": "locomo", "conversation": "c1",
                "policy": {key: value for key, value in TURNS.items() if key != "name"}}  # fmt: skip
        assert http.post("/v1/memories", json=body).json()["added"] == 2
        assert http.post("/v1/memories", json=body).json()["known"] == 2
        until(lambda: len(contents(http, "locomo")) == 2, "the memories")
        (first, _) = exported(http, "locomo")[:2]
        assert (first["sources"], first["time"]) == (["D1:1"], "2023-05-07T10:00:00Z")


def test_whole_conversations_come_back_to_their_user_alone(server: Running) -> None:
    def there(http: httpx.Client, user: str) -> list[dict[str, Any]]:
        return [each for each in exported(http, user) if each["object"] == "episode"]

    with caller(server) as alice, caller(server, "bob") as bob:
        chat(alice, "My red boat lies in Corton", "whole", [WHOLE])
        chat(alice, "I cannot eat peanuts", "whole", [WHOLE])
        until(lambda: len(there(alice, "whole")) == 2, "the episodes")
        boat, food = there(alice, "whole")
        assert boat["turns"][0] == {"speaker": "user", "text": "My red boat lies in Corton"}
        asks = [
            WHOLE | {"remember": False, "episodes": 1},
            {"name": "top_w"},
            {"name": "ead", "threshold": 3.0, "window": 1, "min_tokens": 1, "threshold_down": None},
        ]
        said = chat(alice, "Where is the red boat?", "whole", asks, trace=True)["waver"]
        assert [each["id"] for each in said["episodes"]["recalled"]] == [boat["id"]]
        assert any("My red boat lies in Corton" in line for line in said["episodes"]["quoted"])
        assert set(said["episodes"]["grains"]) == {"episode", "turn", "summary", "keyword"}
        for http, user in ((alice, "eve"), (bob, "whole")):
            assert there(http, user) == []
            assert http.get(f"/v1/memories/episodes/{boat['id']}", params={"user": user}).status_code == 404
            assert http.delete(f"/v1/memories/episodes/{boat['id']}", params={"user": user}).status_code == 404
        query = {"query": "boat", "kind": "episodes", "top_k": 1}
        assert bob.post("/v1/memories/search", json={**query, "user": "whole"}).json() == {"memories": []}
        (found,) = alice.post("/v1/memories/search", json={**query, "user": "whole"}).json()["memories"]
        assert found["id"] == boat["id"]
        again = alice.post(
            "/v1/memories", json={"memories": [boat, food, {"content": "A fact"}], "user": "copy"}
        ).json()
        assert again == {"object": "memories.added", "added": 3, "known": 0}
        assert alice.get(f"/v1/memories/episodes/{boat['id']}", params={"user": "whole"}).json() == boat
        gone = alice.delete(f"/v1/memories/episodes/{boat['id']}", params={"user": "whole"}).json()
        assert gone == {"object": "episode.deleted", "id": boat["id"], "deleted": True}
        assert alice.delete("/v1/memories", params={"user": "whole"}).json()["deleted"] == 1
        assert exported(alice, "whole") == []
        assert len(exported(alice, "copy")) == 3
        assert 'waver_episode_recalls_total{outcome="recalled"}' in alice.get("/metrics").text


def test_an_engine_notes_and_filters_whole_conversations(server: Running) -> None:
    """The bundled shape of a model with random weights writes nothing of use, and nothing breaks."""
    said = [{"speaker": "Anna", "text": "I moved to Oslo"}, {"speaker": "Ben", "text": "Oh."}]
    policy = {"name": "memgas", "idle": 0.0}
    with caller(server) as http:
        body = {"turns": said, "user": "noted", "conversation": "c1", "policy": policy}
        assert http.post("/v1/memories", json=body).json()["added"] == 2
        until(
            lambda: bool(exported(http, "noted")) and exported(http, "noted")[0]["object"] == "episode", "the episode"
        )
        answer = chat(http, "Where did Anna move?", "noted", [policy | {"remember": False}])["waver"]
        assert answer["episodes"]["searched"] == 1
        assert answer["discarded_tokens"] > 0


@pytest.mark.parametrize(
    ("method", "path", "send", "status", "param"),
    [
        ("POST", "/v1/memories", {"json": {}}, 400, "memories"),
        ("POST", "/v1/memories", {"json": {"memories": [{"text": "x"}]}}, 400, "memories[0]"),
        ("POST", "/v1/memories", {"json": {"turns": [{"speaker": "a", "text": "b", "time": "soon"}]}}, 400,
         "turns[0].time"),
        ("POST", "/v1/memories", {"json": {"turns": [{"speaker": "a", "text": "b"}], "policy": {"window": 0}}}, 400,
         "policy[0].window"),
        ("POST", "/v1/memories", {"json": {"turns": [{"speaker": "a", "text": "b"}], "policy": {"engine": "no"}}}, 400,
         "policy.engine"),
        ("GET", "/v1/memories", {"params": {"after": "soon"}}, 400, "after"),
        ("GET", "/v1/memories", {"params": {"after": "0001-01-01T00:00:00+14:00"}}, 400, "after"),
        ("DELETE", "/v1/memories/x", {}, 400, "memory"),
        ("DELETE", "/v1/memories/99999999999999999999", {}, 400, "memory"),
        ("GET", "/v1/memories/0", {}, 404, "memory"),
        ("POST", "/v1/memories/search", {"json": {"query": ""}}, 400, "query"),
        ("POST", "/v1/memories/search", {"json": {"query": "x", "kind": "all"}}, 400, "kind"),
        ("POST", "/v1/memories", {"json": {"memories": [{"object": "episode"}]}}, 400, "memories[0]"),
        ("POST", "/v1/memories", {"json": {"turns": [{"speaker": "a", "text": "b"}], "policy": {"name": "ead"}}}, 400,
         "policy.name"),
        ("GET", "/v1/memories/episodes/0", {}, 404, "episode"),
        ("DELETE", "/v1/memories/episodes/x", {}, 400, "episode"),
    ],
)  # fmt: skip
def test_mistakes_are_told(
    server: Running, method: str, path: str, send: dict[str, Any], status: int, param: str
) -> None:
    with caller(server) as http:
        response = http.request(method, path, **send)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param


def test_pinned_policies_cannot_be_left_out(server: Running) -> None:
    with caller(server, "bob") as http:
        for policy in ([], [TURNS | {"remember": False, "recall": False}]):
            said = chat(http, "I am Bob", "b", policy)["waver"]
            assert [each["name"] for each in said["policy"]] == ["simplemem"]
            assert said["policy"][0]["remember"]
            assert "memory" in said
        until(lambda: bool(contents(http, "b")), "the memory")


def test_it_stands_beside_other_policies(server: Running) -> None:
    with caller(server) as http:
        http.post("/v1/memories", json={"memories": [{"content": "The river is the Sorn"}], "user": "many"})
        http.post("/v1/collections", json={"name": "notes"})
        rows = [{"id": "d", "text": "The bird is the heron"}]
        assert http.post("/v1/collections/notes/documents", json={"documents": rows}).status_code == 200
        policies = [
            {"name": "ead", "threshold": 3.0, "window": 1, "min_tokens": 1, "threshold_down": None},
            {"name": "l_rag", "collection": "notes", "gate": "always"},
            {"name": "top_w"},
            TURNS,
        ]
        said = chat(http, "Which river, which bird?", "many", policies, trace=True)["waver"]
        assert [each["text"] for each in said["memory"]["recalled"]] == ["The river is the Sorn"]
        assert [each["document"] for each in said["retrieval"]["passages"]] == ["d"]
        assert "truncation" in said
        assert set(said["tokens"]) == {"small", "large"}
        metrics = http.get("/metrics").text
        assert 'waver_recalls_total{outcome="recalled"}' in metrics


def test_the_command_line(server: Running, state: Path, config: dict[str, Any], tmp_path: Path,
                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("WAVER_STATE", str(state))
    file = tmp_path / "memories.jsonl"
    file.write_text('{"content": "Zoe sails"}\n{"object": "turn", "speaker": "x", "text": "y"}\n\n')

    def run(*words: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, ["memory", *words, "--key", "alice", "--user", "zoe"])
        assert done.exit_code == status, done.output
        return done.output

    assert "1 remembered, 0 known" in run("import", str(file))
    assert "Zoe sails" in run("show")
    with caller(server) as http:  # which runs meanwhile
        assert contents(http, "zoe") == ["Zoe sails"]
        (line,) = run("export").splitlines()
        assert json.loads(line)["content"] == "Zoe sails"
        assert "Zoe sails" in run("show", "who sails?")
        assert "no memory 0" in run("forget", "0", status=1)
        run("forget", status=2)
        assert "1 forgotten" in run("forget", "--all")
        assert contents(http, "zoe") == []
        turns = [{"speaker": "Zoe", "text": "I sail to Corton"}]
        file.write_text(json.dumps({"object": "episode", "turns": turns}) + "\n")
        assert "1 remembered" in run("import", str(file))
        (line,) = run("export").splitlines()
        episode = json.loads(line)["id"]
        assert f"e{episode} " in run("show")
        assert f"e{episode}  " in run("show", "who sails?")
        run("forget", "x", status=2)
        assert "1 forgotten" in run("forget", f"e{episode}")
        assert exported(http, "zoe") == []
    file.write_text("{]\n")
    assert "line 1" in run("import", str(file), status=1)
