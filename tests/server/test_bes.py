"""A search over HTTP: its report, other policies beside it, limits, and a client that leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Running, until

SEARCH = {"name": "bes", "task": "sums", "delimiter": "e", "iterations": 12, "tokens": 400}


@pytest.fixture(scope="module")
def server(start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> Running:
    return start(config={"default_preset": None, "state": str(tmp_path_factory.mktemp("state"))})


def body(policy: list[dict[str, Any]], text: str = "What is 12 + 30 - 5?", **more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], "max_tokens": 24, "seed": 3,
            "policy": policy, **more}  # fmt: skip


def test_a_search_tells_how_it_ended(server: Running, tmp_path: Path) -> None:
    with server.http() as http:
        beside = [
            SEARCH,
            {"name": "top_w"},
            {"name": "ead", "threshold": 3.0, "window": 1, "min_tokens": 1, "threshold_down": None},
        ]
        answers = [http.post("/v1/chat/completions", json=body(beside)).json() for _ in range(2)]
        record = answers[0]["waver"]["search"]
        assert record["ended"] in ("iterations", "tokens", "solved")
        assert record["best_so_far"] == (record["ended"] != "solved")
        assert {each["how"] for each in record["tree"]} <= {"root", "expand", "combine", "delete", "translocate",
                                                            "crossover", "finish"}  # fmt: skip
        assert answers[0]["usage"]["completion_tokens"] <= 24
        assert answers[0]["choices"][0]["message"]["content"] == answers[1]["choices"][0]["message"]["content"]
        assert "waver_searches_total" in http.get("/metrics").text
    assert server.idle(5)


@pytest.mark.parametrize(
    ("policy", "text"),
    [({"name": "bes", "task": "sums"}, "Who are you?"), ({"name": "bes", "task": "regex", "goals": ["("]}, "x"),
     ({"name": "bes", "task": "code"}, "x"), ({"name": "bes"}, "x")],
)  # fmt: skip
def test_mistakes_are_told(server: Running, policy: dict[str, Any], text: str) -> None:
    with server.http() as http:
        response = http.post("/v1/chat/completions", json=body([policy], text))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_verifiers_and_limits_of_a_server(start: Callable[..., Running], tmp_path: Path) -> None:
    file = tmp_path / "tests.jsonl"
    file.write_text(json.dumps({"question": "Write double.", "tests": ["assert double(1) == 2"]}) + "\n")
    programs = {"kind": "python", "file": str(file), "seconds": 1}
    running = start(config={"default_preset": None, "verifiers": {"programs": programs}}, max_extra_tokens=40)
    policy = [{"name": "bes", "verifier": "programs", "delimiter": "e", "tokens": 4000}]
    with running.http() as http:
        told = http.post("/v1/chat/completions", json=body(policy, "Write double.")).json()
        record = told["waver"]["search"]
        assert (record["ended"], record["best_so_far"]) == ("extra_tokens", True)
        assert record["goals"] == {"all": 0.0, "assert double(1) == 2": 0.0}
        assert told["choices"][0]["message"]["content"]
        assert sum(record["tokens"].values()) <= 41
        refused = http.post("/v1/chat/completions", json=body(policy, "Write half."))
        assert "there are no tests for this question" in refused.json()["error"]["message"]
        in_a_request = [{"name": "bes", "verifier": {"kind": "python", "file": str(file)}}]
        assert http.post("/v1/chat/completions", json=body(in_a_request, "Write double.")).status_code == 400
    assert running.idle(5)


def test_a_client_that_leaves_leaves_no_sequence_behind(server: Running) -> None:
    long = {**SEARCH, "iterations": 1000, "tokens": 200_000}
    with server.http() as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body([long], max_tokens=400), timeout=0.5)
        until(lambda: server.active == 0, "the end of the search", 10)
    assert server.idle(10)
