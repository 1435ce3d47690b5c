"""The benchmark of choosing: what is drawn and kept, how a run goes on, and the figures of runs that are made up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from waver.benchmarks.choosing import LINES, app
from waver.benchmarks.choosing_tables import page, summary
from waver.job import read_lines
from waver.resources import MODELS
from waver.training.pair.world import draw


def call(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def test_a_run_is_kept_and_goes_on(tmp_path: Path) -> None:
    questions, work, out = tmp_path / "sums.jsonl", tmp_path / "work", tmp_path / "out"
    sums = draw("arithmetic", 3, 4, steps=(1, 3))
    questions.write_text("".join(json.dumps({"input": s.prompt, "target": int(s.answer)}) + "\n" for s in sums))
    small = (
        "--samples",
        3,
        "--perturbations",
        1,
        "--replications",
        2,
        "--max-tokens",
        40,
        "--evidence",
        2,
        "--heated",
        2,
    )
    told = (questions, "--model", MODELS / "small", "--n", 3, *small, "--work", work, "--out", out)
    call(*told)
    lines = read_lines(work / LINES)
    assert [sorted(line) for line in lines[:3]] == [["place", "runs"]] * 3
    assert sorted(line["place"] for line in lines[3:5]) == sorted(line["place"] for line in lines[5:]) == [0, 1]
    assert [len(own) for own in lines[3]["answers"]] == [2, 2]
    heated = lines[5]["heated"]
    assert list(heated) == ["0.3", "1", "1.4"]
    assert all(len(own) == 2 for each in heated.values() for own in each)
    made = json.loads((out / "choosing.json").read_text())
    assert made["heated"]["questions"] == 2
    assert all(0 <= row["chain"] <= row["last"] <= 1 for row in made["heated"]["tsu"])
    assert (made["questions"], made["evidence"]["questions"], list(made["rules"])) == (3, 2, ["1", "3"])
    assert "## What rises with the temperature" in (out / "choosing.md").read_text()
    assert "| runs | random |" in (out / "choosing.md").read_text()
    (work / LINES).write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    call(*told)
    again = read_lines(work / LINES)
    assert len(again) == 7
    assert again[:6] == lines[1:], "what is there is not drawn anew"
    assert again[6]["place"] == lines[0]["place"]
    assert "holds another run" in call(*told, "--seed", 5, code=1)


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    programs = tmp_path / "programs.jsonl"
    programs.write_text((json.dumps({"prompt": "Add.", "scorer": "python_tests", "tests": ["assert f"]}) + "\n") * 2)
    told = ("--n", 2, "--work", tmp_path / "work", "--out", tmp_path)
    assert "add --evidence 0" in call(programs, *told, code=1)
    assert "3 questions are wanted" in call(programs, *told, "--n", 3, code=1)
    assert "--heated takes some" in call("arithmetic", *told, "--evidence", 1, "--heated", 2, code=1)
    with pytest.raises(ValueError, match="let it run longer"):
        summary([], None)


def test_programs_are_run_and_do_not_vote(tmp_path: Path) -> None:
    programs = tmp_path / "programs.jsonl"
    row = {"prompt": "Write a function.", "scorer": "python_tests", "before": "def f():\n    return 1\n", "tests": [""]}
    programs.write_text((json.dumps(row) + "\n") * 2)
    few = ("--n", 2, "--evidence", 0, "--samples", 3, "--max-tokens", 30)
    call(programs, "--model", MODELS / "small", *few, "--work", tmp_path / "work", "--out", tmp_path, "--name", "code")
    made = json.loads((tmp_path / "code.json").read_text())
    assert (made["evidence"], made["heated"], made["task"]) == (None, None, f"{tmp_path.name}/programs.jsonl")
    lines = read_lines(tmp_path / "work" / LINES)
    assert {run["right"] for line in lines for run in line["runs"]} == {False}, "what the model writes is no Python"


def made_up(count: int) -> list[dict[str, Any]]:
    """Runs whose entropy tells wrong ones, and whose plurality is right three times in four."""
    rng, lines = random.Random(1), []
    for place in range(count):
        runs = []
        for i in range(5):
            right = i % 2 == 0 if place % 4 else i == 1
            entropy = rng.uniform(0.0, 0.4) if right else rng.uniform(0.5, 1.0)
            features = {"sample_mean": entropy, "sample_max": 1.0}
            runs.append({"right": right, "answer": "1" if right else "2", "entropy": entropy, "tokens": 10,
                         "features": features})  # fmt: skip
        lines.append({"place": place, "runs": runs})
    return lines


def test_figures_of_runs_that_are_made_up() -> None:
    lines = made_up(40)
    found = summary(lines, None)
    five = found["rules"]["5"]
    assert five["vote"]["accuracy"] == 0.75
    assert five["min_entropy"]["accuracy"] == five["oracle"]["accuracy"] == 1.0
    assert five["random"]["accuracy"] == pytest.approx((30 * 0.6 + 10 * 0.2) / 40)
    assert five["min_entropy"]["p"] < 0.01
    assert "p" not in five["oracle"]
    low, high = five["min_entropy"]["over_vote"]
    assert 0.1 < low < 0.25 < high < 0.4
    by = {row["measure"]: row["worked"]["auroc"] for row in found["of_runs"]}
    assert by["mean entropy of its tokens"] == 1.0
    assert by["largest entropy of its tokens"] == 0.5
    settings = {"samples": 5, "perturbations": 1, "replications": 1}
    assert "## Which answers are wrong" in page({**found, "model": "m", "task": "t", "settings": settings})
