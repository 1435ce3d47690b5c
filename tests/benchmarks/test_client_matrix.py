"""The client matrix: a real client in an environment of its own, and scripts that break."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT
from waver.benchmarks import client_matrix
from waver.benchmarks.client_matrix import Client, ask, find, page


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The bundled small model, with a template that shows tools."""
    folder = Path(shutil.copytree(ROOT / "models" / "small", tmp_path / "model"))
    shutil.copy(ROOT / "tests" / "server" / "hermes.jinja", folder / "chat_template.jinja")
    return folder


@pytest.mark.timeout(600)
def test_a_client_of_the_matrix_works(model: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(model), "--only", "openai_python", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(client_matrix.app, arguments)
    assert done.exit_code == 0, done.output
    (client,) = json.loads((tmp_path / "out" / "client_matrix.json").read_text())["clients"]
    assert len(client["failed"]) == 8
    assert not {check: said for check, said in client["failed"].items() if said}
    known = client_matrix.earlier(tmp_path / "out")
    assert [each.version for each in known.values()] == [client["version"]]


def test_every_script_is_pinned_and_run() -> None:
    named = {client.name for client in find()}
    python = {file.stem for file in client_matrix.SCRIPTS.glob("*.py")} - {"harness"}
    node = {f"{file.stem}_node" for file in client_matrix.SCRIPTS.glob("*/*.mjs")} - {"harness_node"}
    assert named == python | node


@pytest.mark.parametrize(
    ("code", "failed"),
    [
        ("print('{\"check\": \"text\", \"passed\": true, \"said\": \"\"}')", {"text": ""}),
        ("print('{\"check\": \"text\", \"passed\": false, \"said\": \"no\"}')", {"text": "no"}),
        ("print('{\"check\": \"text\", \"passed\": true, \"said\": \"\"}'); 1 / 0",
         {"text": "", "start": "ZeroDivisionError: division by zero"}),
        ("pass", {"start": "exit status 0"}),
    ],
)  # fmt: skip
def test_what_a_script_says_is_noted(code: str, failed: dict[str, str], tmp_path: Path) -> None:
    client = Client("a", "b 1", [sys.executable, "-c", code])
    ask(client, {}, tmp_path)
    assert client.failed == failed
    passed = sum(not said for said in failed.values())
    assert f"{passed} of {len(failed)} checks pass" in "\n".join(page([client]))


def test_a_script_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(client_matrix.app, ["--model", "m", "--only", "nobody", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "openai_python" in done.output
    assert not any(tmp_path.iterdir())
