"""`waver ingest` as a person runs it: on a folder, again, and through a server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from waver.clients.ingest import Uploaded, show

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "a.md").write_text("# Arn\n\nThe Arn is 412 km long.")
    (tmp_path / "notes" / "deep" / "b.txt").write_bytes(b"Osk makes cheese.\xff")
    (tmp_path / "notes" / "c.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    return tmp_path / "notes"


def ingest(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "waver", "ingest", *map(str, arguments)],
        capture_output=True, text=True, timeout=200, cwd=ROOT, env=environment or None,
    )  # fmt: skip


def test_here_and_seen_by_a_server(folder: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    section = {"path": str(tmp_path / "collections")}
    running = start(config={"retrieval": section})
    file = tmp_path / "waver.yaml"
    file.write_text(yaml.safe_dump({"engines": {"small": {"model": "models/small"}}, "retrieval": section}))
    done = ingest(folder, "--collection", "notes", "--config", file, "--metadata", "lang=en")
    assert done.returncode == 3, done.stderr
    assert "warning deep/b.txt: 1 character could not be read" in done.stderr
    assert "2 added, 1 skipped; 2 chunks" in done.stderr
    assert "skipped c.zip: this is a ZIP archive" in done.stderr
    again = ingest(folder, "-n", "notes", "-c", file, "-m", "lang=en")
    assert "0 added, 2 unchanged, 1 skipped" in again.stderr
    with running.http() as http:
        question = {"query": "How long is the Arn?", "filter": {"lang": "en"}}
        (first, _) = http.post("/v1/collections/notes/search", json=question).json()["passages"]
        assert (first["document"], first["title"]) == ("a.md", "Arn")
        done = ingest(folder, "-n", "there", "--base-url", running.v1, "-m", "lang=en")
        assert done.returncode == 3, done.stderr
        assert "warning deep/b.txt: 1 character could not be read" in done.stderr
        assert "2 added, 1 skipped" in done.stderr
        assert http.get("/v1/collections/there").json()["documents"] == 2
        passages = http.post("/v1/collections/there/search", json=question).json()["passages"]
        assert {each["document"] for each in passages} == {"a.md", "deep/b.txt"}


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([Uploaded("a", "added"), Uploaded("b", "unchanged")], 0),
        ([Uploaded("a", "skipped", reason="empty"), Uploaded("\udcff", "skipped", reason="its name")], 1),
        ([Uploaded("a", "added"), Uploaded("\udcff", "skipped", reason="its name is not UTF-8")], 3),
        ([Uploaded("a", "added", warnings=["page 2 of 3: damaged"])], 3),
    ],
)
def test_the_exit_status_tells_what_was_lost(
    outcomes: list[Uploaded], status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert show(outcomes, len(outcomes), "notes") == status
    shown = capfd.readouterr().err
    for each in outcomes:
        assert not each.reason or f"skipped {'a' if each.id == 'a' else chr(92) + 'udcff'}: {each.reason}" in shown
        assert all(f"warning {each.id}: {warning}" in shown for warning in each.warnings)


def test_the_summary_is_printed_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = [Uploaded("a", "added", chunks=2, warnings=["cut"]), Uploaded("\udcff", "skipped", reason="its name")]
    assert show(outcomes, 2, "notes", as_json=True) == 3
    made = json.loads(capfd.readouterr().out)
    assert (made["added"], made["skipped"], made["chunks"]) == (1, 1, 2)
    assert made["skipped_files"] == [{"id": "\udcff", "reason": "its name"}]
    assert made["warnings"] == [{"id": "a", "warning": "cut"}]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere", "-n", "x"), "There is no file or folder 'nowhere'."),
        (("docs", "-n", "x", "-m", "broken"), "KEY=VALUE"),
        (("docs", "-n", "x", "-c", "nowhere.yaml"), "cannot be read"),
        (("docs", "-n", "x", "--base-url", "http://127.0.0.1:9/v1"), "does not answer"),
        (("docs", "-n", "UPPER"), "lower-case"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], sentence: str) -> None:
    done = ingest(*arguments)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
