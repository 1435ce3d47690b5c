"""Facts over HTTP and on the command line: edits, whose they are, and answers that use them or stay as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.conftest import Running
from waver.cli import app
from waver.retrieval.embedder import Embedder

MAYOR = {"text": "The mayor of Corton is Ida", "subject": "Corton", "relation": "mayor"}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def server(start: Callable[..., Running], state: Path, embedder: Embedder) -> Running:
    running = start(
        config={"state": str(state), "default_preset": None, "retrieval": {"path": str(state / "collections")}}
    )
    running.runtime.library.embedders["all-MiniLM-L6-v2"] = embedder
    return running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as made:
        yield made


def listed(http: httpx.Client, **params: Any) -> list[dict[str, Any]]:
    response = http.get("/v1/facts", params=params)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_edits(http: httpx.Client) -> None:
    (made,) = http.post("/v1/facts", json={"facts": [MAYOR], "user": "u"}).json()["data"]
    assert (made["text"], made["subject"], made["relation"]) == (MAYOR["text"], "corton", "mayor")
    http.post("/v1/facts", json={"facts": [{**MAYOR, "text": "The mayor of Corton is Olaf"}], "user": "u"})
    assert [each["text"] for each in listed(http, user="u")] == ["The mayor of Corton is Olaf"]
    assert [each["text"] for each in listed(http, user="u", at=made["begun"])] == [MAYOR["text"]]
    first, second = listed(http, user="u", history=True)
    assert first["ended"] == second["begun"]
    assert listed(http) == listed(http, user="v") == []
    for user, status in (("v", 404), ("u", 200)):
        assert http.get(f"/v1/facts/{first['id']}", params={"user": user}).status_code == status
        assert http.delete(f"/v1/facts/{first['id']}", params={"user": user}).status_code == status
    assert http.delete("/v1/facts", params={"user": "u"}).json() == {"object": "facts.deleted", "deleted": 1}


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "facts"), ({"facts": []}, "facts"), ({"facts": [{"text": ""}]}, "facts[0].text"),
     ({"facts": [{"text": "x", "owner": "y"}]}, "facts[0].owner"), ({"facts": [{"text": 3}]}, "facts[0].text")],
)  # fmt: skip
def test_mistakes_are_told(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    response = http.post("/v1/facts", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def ask(http: httpx.Client, policy: list[dict[str, Any]], user: str) -> Any:
    body = {"model": "small", "messages": [{"role": "user", "content": "Who is the mayor of Corton?"}], "user": user,
            "max_tokens": 6, "temperature": 0, "policy": policy, "ignore_eos": True}  # fmt: skip
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_answers(http: httpx.Client) -> None:
    http.post("/v1/facts", json={"facts": [MAYOR], "user": "asks"})
    plain = ask(http, [], "asks")
    # Of random models nobody knows what they say to a question: a threshold of 0 confirms whatever number is likely.
    beside = [
        {"name": "ead", "threshold": 3.0, "window": 1, "min_tokens": 1, "threshold_down": None},
        {"name": "top_w"},
    ]
    sure = ask(http, [{"name": "scr", "confirm": "probability", "threshold": 1.0, "floor": 1.0}, *beside], "asks")
    assert sure["waver"]["facts"]["route"] == "direct"
    assert [each["text"] for each in sure["waver"]["facts"]["candidates"]] == [MAYOR["text"]]
    same = ask(http, [{"name": "scr", "floor": 1.0}], "asks")
    assert same["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]
    for confirm in ("listwise", "pointwise", "probability"):
        told = ask(http, [{"name": "scr", "confirm": confirm}], "asks")["waver"]
        assert (told["facts"]["route"] == "memory") == bool(told["facts"]["confirmed"])
        assert told["discarded_tokens"] >= 1
    assert "waver_fact_routes_total" in http.get("/metrics").text


def test_the_command_line(http: httpx.Client, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVER_STATE", str(state))

    def run(*words: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, ["facts", *words, "--user", "zoe"])
        assert done.exit_code == status, done.output
        return done.output

    run("add", MAYOR["text"], "--subject", "Corton", "--relation", "mayor")
    run("add", "The mayor of Corton is Olaf", "--subject", "Corton", "--relation", "mayor")
    assert "Olaf" in run("show", "who is mayor?")
    assert "(replaced)" in run("show", "--history")
    (line,) = run("export").splitlines()
    assert [each["text"] for each in listed(http, user="zoe")] == [json.loads(line)["text"]]
    file = tmp_path / "facts.jsonl"
    file.write_text(f'{line}\n\n{{"text": "Corton has a river"}}\n')
    assert "2 facts" in run("import", str(file))
    assert "no fact 0" in run("forget", "0", status=1)
    run("forget", status=2)
    assert "forgotten" in run("forget", "--all")
    assert listed(http, user="zoe", history=True) == []
    file.write_text("{}\n")
    assert "line 1" in run("import", str(file), status=1)
