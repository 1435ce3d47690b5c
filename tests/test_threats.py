"""Every line of the page of threats names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def threats(page: str) -> list[str]:
    """Return the rows of the table of what is not trusted."""
    section = page.partition("## What is not trusted")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return rows[2:] if rows[1:2] and set(rows[1]) <= set("| -") else rows


def missing(row: str) -> list[str]:
    """Return what is wrong with a row: it names no test, or one that is not there."""
    named = NAMED.findall(row)
    return [f"{file}::{name}" for file, name in named if name not in functions(file)] if named else ["no test"]


def functions(file: str) -> set[str]:
    path = ROOT / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_threat_is_held_by_a_test() -> None:
    rows = threats(PAGE)
    assert len(rows) >= 25
    assert {row.split("|")[1]: found for row in rows if (found := missing(row))} == {}


def test_what_users_bring_is_on_the_page() -> None:
    rows = "\n".join(threats(PAGE))
    for kind in ("document", "memory", "fact", "tool's result", "guard", "key"):
        assert kind in rows


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("| a | b | |", ["no test"]),
        ("| a | b | `tests/test_threats.py::test_gone` |", ["tests/test_threats.py::test_gone"]),
        ("| a | b | `tests/gone.py::test_x` |", ["tests/gone.py::test_x"]),
        ("| a | b | `tests/test_threats.py::test_every_threat_is_held_by_a_test` |", []),
    ],
)
def test_a_name_that_is_gone_is_noticed(row: str, wrong: list[str]) -> None:
    assert missing(row) == wrong
