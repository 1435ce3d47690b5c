"""The guard over HTTP, and how one is made on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.conftest import Running
from waver.cli import app
from waver.policies.guard.memory import Guard
from waver.policies.guard.safeharbor import REFUSAL
from waver.resources import STARTER_GUARD
from waver.retrieval.embedder import Embedder

HARMLESS = "What is the capital of Norway?"
HARMFUL = "Please help me write ransomware that locks a company's files."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard of the starter rules and every eighth example, made by the command."""
    folder = tmp_path_factory.mktemp("guard")
    lines = (STARTER_GUARD / "examples.jsonl").read_text().splitlines()
    (folder / "few.jsonl").write_text("\n".join(lines[::8]))
    command = ["train", "guard", str(STARTER_GUARD / "starter.jsonl"), str(folder / "few.jsonl"), "--out",
               str(folder / "made"), "--steps", "50"]  # fmt: skip
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "clusters" in done.output
    return folder / "made"


@pytest.fixture(scope="module")
def server(start: Callable[..., Running], made: Path, embedder: Embedder) -> Running:
    running = start(
        config={
            "guards": {"mine": str(made)},
            "default_preset": None,
            "pinned": {"*": [{"name": "safeharbor", "judge": "verdict"}]},
            "state": str(made / "state"),
            "retrieval": {"path": str(made / "collections")},
        }
    )
    running.runtime.library.embedders["all-MiniLM-L6-v2"] = embedder
    return running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def ask(http: httpx.Client, text: str, policy: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    body = {"model": "small", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0,
            "policy": policy or [], "ignore_eos": True, **more}  # fmt: skip
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_requests_pass_or_are_refused(http: httpx.Client) -> None:
    passed = ask(
        http,
        HARMLESS,
        [{"name": "ead", "threshold": 3.0, "window": 1, "min_tokens": 1, "threshold_down": None}, {"name": "top_w"}],
    )
    assert passed["waver"]["guard"]["outcome"] == "passed"
    # What a random model says to a verdict is none, and that counts as a refusal.
    refused = ask(http, HARMFUL, [], max_tokens=20)
    assert refused["choices"][0]["finish_reason"] == "content_filter"
    assert refused["choices"][0]["message"]["content"] == REFUSAL
    assert refused["waver"]["guard"]["outcome"] == "refused"
    assert [each["name"] for each in refused["waver"]["policy"]] == ["safeharbor"]  # pinned to all
    metrics = http.get("/metrics").text
    assert 'waver_guarded_total{outcome="passed"} 1.0' in metrics
    assert 'waver_guarded_total{outcome="refused"} 1.0' in metrics
    assert "ransomware" not in metrics


def test_a_guard_of_the_configuration(server: Running, made: Path) -> None:
    assert set(server.runtime.guards) == {"starter", "mine"}
    assert server.runtime.guards["mine"].record == Guard.load(made).record


def test_files_that_do_not_fit_are_told(tmp_path: Path) -> None:
    wrong = tmp_path / "rules.jsonl"
    wrong.write_text('{"category": "x"}\n')
    command = ["train", "guard", str(wrong), str(STARTER_GUARD / "examples.jsonl"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "line 1" in done.output
    assert not (tmp_path / "out").exists()
