"""The benchmark of BES: searches are kept and gone on with, and figures of searches that are made up are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from waver.benchmarks.bes import LINES, METHODS, app, page, puzzles, summary
from waver.goals import knights_task, sum_task
from waver.job import read_lines
from waver.resources import MODELS


def call(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def test_searches_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    told = ("sums", "--model", MODELS / "small", "--n", 3, "--size", 3, "--tokens", 150, "--max-tokens", 60,
            "--work", tmp_path / "work", "--out", tmp_path)  # fmt: skip
    call(*told)
    lines = read_lines(tmp_path / "work" / LINES)
    assert sorted((line["method"], line["place"]) for line in lines) == sorted(
        (m, i) for m in METHODS for i in range(3)
    )
    assert all(line["tokens"] <= 151 and line["ended"] in ("solved", "tokens") for line in lines)
    assert any(line["ended"] == "solved" for line in lines)
    made = json.loads((tmp_path / "bes.json").read_text())
    assert (made["puzzles"], [row["tokens"] for row in made["rows"]]) == (3, [19, 38, 75, 150])
    (tmp_path / "work" / LINES).write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    call(*told)
    again = read_lines(tmp_path / "work" / LINES)
    assert again[:-1] == lines[1:], "what is there is not searched anew"
    same = ("place", "method", "ended", "tokens", "calls", "nodes")
    assert [again[-1][name] for name in same] == [lines[0][name] for name in same], "the same seed, the same search"
    assert "holds another run" in call(*told, "--seed", 5, code=1)


def test_puzzles_can_be_read_and_others_come_of_another_seed() -> None:
    for text in (each.text for each in puzzles("knights", 3, 3, 1)):
        knights_task(text)
    for text in (each.text for each in puzzles("sums", 3, 4, 1)):
        sum_task(text)
    assert puzzles("knights", 3, 3, 1) != puzzles("knights", 3, 3, 2)
    assert "2 to 8 people" in call("knights", "--size", 9, code=1)


def test_figures_of_searches_that_are_made_up() -> None:
    lines = {}
    for place in range(20):
        for method, tokens in (("bes", 100), ("tree", 300), ("best_of_n", 100 if place % 2 else 900)):
            ended = "solved" if tokens < 900 else "tokens"
            lines[method, place] = {"ended": ended, "tokens": tokens, "calls": 2, "seconds": 1.0}
    lines["bes", 20] = {"ended": "solved", "tokens": 1, "calls": 1, "seconds": 1.0}
    found = summary(lines, 800)
    assert found["puzzles"] == 20, "one that was not searched by all does not count"
    shares = [[row["solved"][m]["share"] for m in METHODS] for row in found["rows"]]
    assert shares == [[1, 0, 0.5], [1, 0, 0.5], [1, 1, 0.5], [1, 1, 0.5]]
    over = found["rows"][0]["over"]["best_of_n"]
    assert over["mean"] == 0.5
    assert 0.2 < over["interval"][0] < 0.5 < over["interval"][1] < 0.8
    settings = {"task": "knights", "size": 4, "max_tokens": 9, "temperature": 0.6, "tokens": 800, "at_once": 1}
    assert "50.0 %" in "".join(page({**found, "model": "m", "settings": settings}))
    with pytest.raises(ValueError, match="let it run longer"):
        summary({}, 800)
