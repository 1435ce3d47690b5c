"""`waver bench consistency` and `waver train paraphrases` on a real engine: what is measured, gone on with, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("trl")

from waver.benchmarks.consistency import app, measured, summary
from waver.cli import app as waver
from waver.job import read_lines
from waver.training.tasks.consistency.sets import WordingSet, read_sets


def call(command: Any, *options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(command, [*map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def test_the_measures_of_a_question() -> None:
    of = WordingSet(("a", "b", "c"), (), "Paris")
    line = {"passages": [["1", "2"], ["2", "3"], ["1", "2"]], "own": ["Paris", "Paris", "Lyon"], "same": ["Paris"] * 3}
    found = measured(of, line, "bleu1")
    assert found["retriever"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert found["generator"] == 1
    assert found["end_to_end"] == pytest.approx(1 / 3)
    assert (found["right"], found["exact_match"], found["f1"]) == (1, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert math.isnan(found["wrong"])
    assert summary([found, found])["end_to_end"]["mean"] == pytest.approx(1 / 3)
    assert "wrong" not in summary([found])


def test_wordings_are_written_and_measured(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "What is 12 + 30?", "answer": "42"}\n{"question": "What is 20 + 5?"}\n')
    sets = tmp_path / "sets.jsonl"
    options = ("train", "paraphrases", questions, "--out", sets, "--engine", "small", "--n", "2", "--tries", "8")
    call(waver, *options, "--max-tokens", "60")
    written = read_sets(sets)
    assert all(len(each.questions) == 2 for each in written)
    assert written[0].questions[0] in ("What is 12 + 30?", "What is 20 + 5?")
    before = sets.read_text()
    call(waver, *options, "--max-tokens", "60")
    assert sets.read_text() == before
    assert "holds another run" in call(waver, *options, "--max-tokens", "50", code=1)

    rows = [{"questions": ["What is 12 + 30?", "What is 30 + 12?"], "passages": [["a"], ["b"]], "answer": "42"}]
    sets.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    told = (sets, "--out", out, "--max-tokens", "12", "--judge", "small")
    call(app, *told)
    numbers = json.loads((out / "consistency.json").read_text())["measures"]
    assert numbers["retriever"]["mean"] == 0
    assert numbers.keys() >= {"generator", "end_to_end", "generator_judged", "end_to_end_judged", "f1"}
    assert len(read_lines(out / "answers.jsonl")) == 1
    call(app, *told)
    assert json.loads((out / "consistency.json").read_text())["measures"] == numbers
    assert "holds another run" in call(app, *told, "--similarity", "exact", code=1)
    assert "--similarity is bleu1" in call(app, *told, "--similarity", "cosine", code=1)
    assert "there is no engine 'nobody'" in call(app, sets, "--out", tmp_path / "x", "--engine", "nobody", code=1)
