"""Delimited values as tables, notebooks as texts, source code as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from waver.retrieval.base import BadDocument, TooLarge
from waver.retrieval.delimited import delimited
from waver.retrieval.notebook import notebook
from waver.retrieval.parsing import Parsers


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (
            "town,river\nOsk,Arn\nVel,Tau",
            ["| town | river |", "| town: Osk | river: Arn |", "| town: Vel | river: Tau |"],
        ),
        ("town;km\nOsk;4,5\nVel;3,1", ["| town | km |", "| town: Osk | km: 4,5 |", "| town: Vel | km: 3,1 |"]),
        ("a\tb\n1\t2", ["| a | b |", "| a: 1 | b: 2 |"]),
        ("a|b\n1|2\n3|4", ["| a | b |", "| a: 1 | b: 2 |", "| a: 3 | b: 4 |"]),
        ("1,2\n3,4", ["| 1 | 2 |", "| 3 | 4 |"]),
        ("2024-01-02,5\n2024-01-03,6", ["| 2024-01-02 | 5 |", "| 2024-01-03 | 6 |"]),
        ('name,text\nx,"two\nlines, ""quoted"""', ["| name | text |", '| name: x | text: two lines, "quoted" |']),
        ("\ufeffa,b\r\n\r\n1,2\r\n", ["| a | b |", "| a: 1 | b: 2 |"]),
        ("just a line", ["just a line"]),
        ("one\ntwo\nthree", ["one", "two", "three"]),
    ],
)
def test_values(content: str, lines: list[str]) -> None:
    read = delimited(content, 10_000)
    assert read.text.split("\n") == lines
    assert read.warnings == ()


def test_values_that_are_uneven_or_too_many() -> None:
    assert delimited("a,b\n1\n2,3", 1000).warnings == ("1 of its 3 rows have more or fewer values than the first",)
    assert "1" in delimited("a,b\n1\n2,3", 1000).text
    with pytest.raises(TooLarge):
        delimited("a,b\n" + "1,2\n" * 1000, 1000)
    with pytest.raises(BadDocument):
        delimited("a,b\n" + "x" * 2000 + ",1", 1000)


def cells(*found: dict[str, Any], **metadata: Any) -> str:
    return json.dumps({"nbformat": 4, "metadata": metadata, "cells": list(found)})


def test_a_notebook() -> None:
    code = {
        "cell_type": "code",
        "source": ["def f():\n", "    x = 1\n", "\n", "    return x"],
        "outputs": [
            {"output_type": "stream", "name": "stdout", "text": ["printed\n"]},
            {"output_type": "execute_result", "data": {"text/plain": "412", "text/html": "<b>412</b>"}},
            {"output_type": "display_data", "data": {"image/png": "aGk=", "text/plain": "<Figure>"}},
            {"output_type": "error", "ename": "ValueError", "evalue": "no river", "traceback": ["x"]},
        ],
    }
    text = {"cell_type": "markdown", "source": "# Rivers\n\nUse *List<String>* and `x`."}
    read = notebook(cells(text, code, language_info={"name": "Python"}), 10_000)
    assert read.title == "Rivers"
    assert read.text == (
        "Rivers\n\nUse List<String> and x.\n\ndef f():\n    x = 1\n\n    return x\n\nprinted\n\n\n412\n\n"
        "ValueError: no river"
    )
    assert read.metadata == {"code": "python"}
    assert read.warnings == ("1 of its outputs show no text: pictures or widgets",)


def test_an_old_notebook() -> None:
    old = {"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "input": "x = 1", "outputs": []}]}]}
    assert notebook(json.dumps(old), 1000).text == "x = 1"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cells": [1], "nbformat": 4}', "[" * 100_000])
def test_what_is_no_notebook(content: str) -> None:
    with pytest.raises(BadDocument, match="none"):
        notebook(content, 1000)


def test_by_the_names_of_files(parsers: Parsers) -> None:
    assert parsers.parse(b"a,b\n1,2", "x.csv").text == "| a | b |\n| a: 1 | b: 2 |"
    assert parsers.parse(b"a,b\n1,2", "x", "text/csv").text == "| a | b |\n| a: 1 | b: 2 |"
    assert parsers.parse(b"a\tb\n1\t2", "x.TSV").text == "| a | b |\n| a: 1 | b: 2 |"
    assert parsers.parse("größe;b\n1;2".encode("cp1252"), "x.csv").warnings
    assert parsers.parse(cells({"cell_type": "raw", "source": "x"}).encode(), "x.ipynb").text == "x"
    source = "def f():\n\n    return List<String>  # <script>\n"
    for name, language in (("x.py", "python"), ("x.RS", "rust"), ("a/b.tsx", "typescript"), ("x.sql", "sql")):
        read = parsers.parse(source.encode(), name)
        assert (read.text, read.metadata) == (source.rstrip(), {"code": language})
    assert parsers.parse(source.encode(), "x.txt").metadata == {}
