"""Docstrings and prose keep to plain words: no riddles, no references to documents outside of the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RIDDLE = re.compile(r"\s*(Who|Whose|What|Whether|How|Where|When|Which|Why)\b")
"""A docstring begins with a verb or names the thing; it does not begin like a question."""
OUTSIDE = re.compile(
    r"\bthe\s+card\b|\bmethod\s+cards?\b|/work/(?:main|shared|wt)|/tmp/(?:t|bash_jobs)\b", re.IGNORECASE
)
"""Notes and folders of those who wrote the code, which no reader has: cite a paper and its equation instead."""
TEXT = (".py", ".md", ".yaml", ".yml", ".toml", ".sh", "Makefile", "Dockerfile")


def files(*endings: str) -> list[Path]:
    """Return the files of the repository with these endings, new ones included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [ROOT / name for name in listed.splitlines() if name.endswith(endings)]
    return [file for file in found if file.is_file() and not file.is_symlink()]


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring: of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def riddles(source: str) -> list[str]:
    return [f"{line}: {text[:60]}" for line, text in docstrings(source) if RIDDLE.match(text)]


def test_docstrings_do_not_begin_like_questions() -> None:
    python = files(".py")
    assert len(python) > 400
    found = {str(file.relative_to(ROOT)): riddles(file.read_text(encoding="utf-8")) for file in python}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_nothing_refers_to_what_a_reader_lacks() -> None:
    found = {}
    for file in files(*TEXT):
        if match := OUTSIDE.search(file.read_text(encoding="utf-8")):
            found[str(file.relative_to(ROOT))] = match[0]
    assert found == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""Who waits."""', 1),
        ('def f():\n    """Whether it is so."""', 1),
        ('x = 1\n"""How many."""', 1),
        ('class A:\n    """Whole numbers."""', 0),
    ],
)
def test_a_riddle_is_noticed(source: str, count: int) -> None:
    assert len(riddles(source)) == count
