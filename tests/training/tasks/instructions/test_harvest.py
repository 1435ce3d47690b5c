"""`waver train instructions`: sorted by a live engine's answers, gone on with, learned from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("trl")

from waver.cli import app
from waver.engines.base import Sampling
from waver.engines.config import TransformersConfig
from waver.engines.transformers import TransformersEngine
from waver.job import read_lines
from waver.training.options import RlRun
from waver.training.rl.run import questions
from waver.training.tasks.instructions.harvest import cold_start, level, repeated
from waver.training.tasks.instructions.options import Sifting

QUICK = ("--engine", "small", "--n", "6", "--samples", "2", "--max-tokens", "24", "--rules", "1", "1")


def waver(*options: Any, code: int = 0) -> str:
    """Return what a command prints."""
    result = CliRunner().invoke(app, [*map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def said(score: float, tokens: int = 10, text: str = "a b c", cut: bool = False) -> dict[str, Any]:
    return {"score": score, "tokens": tokens, "text": text, "cut": cut, "met": 1, "of": 2}


def texts(lines: list[dict[str, Any]]) -> dict[int, list[tuple[str, float]]]:
    return {line["place"]: [(each["text"], each["score"]) for each in line["answers"]] for line in lines}


def test_levels() -> None:
    right, wrong = said(1.05), said(0.9)
    assert level([wrong, wrong], Sifting()) == "hard"
    assert level([right, wrong], Sifting()) == "easy"
    assert level([right, right], Sifting()) == "pass"
    assert level([right, wrong, wrong, wrong], Sifting(hard_rate=0.25)) == "hard"
    assert level([right, right, right, wrong], Sifting(pass_rate=0.75)) == "pass"


def test_a_cold_start_is_right_deep_and_fluent() -> None:
    """One answer for each question, the deepest; what is short, cut, repeats itself or is wrong is left out."""
    rows = [{"question": str(i)} for i in range(5)]
    answers = [
        [said(1.1, 50), said(1.1, 40, "second")],
        [said(1.1, 9, "short")],
        [said(1.1, 80, "on and on and on and on and on and on and on")],
        [said(0.4, 90, "wrong"), said(1.1, 45, "good")],
        [said(1.1, 70, "cut", cut=True)],
    ]
    found = cold_start(rows, answers, Sifting(deep=0.2))
    assert found == [{"question": "0", "answer": "a b c"}, {"question": "3", "answer": "good"}]
    assert len(cold_start(rows, answers, Sifting(deep=0.2, cold_start=1))) == 1
    assert cold_start(rows, [[said(0.9)]] * 5, Sifting()) == []
    assert repeated("one two three") == 0
    assert repeated("a b a b a b a b") == pytest.approx(1 - 2 / 5)


def test_a_run_goes_on_and_its_questions_are_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "data"
    waver("train", "instructions", "--out", out, *QUICK)
    lines = read_lines(out / "answers.jsonl")
    assert sorted(line["place"] for line in lines) == list(range(6))
    report = json.loads((out / "report.json").read_text())
    assert sum(report["instructions"].values()) == 6
    assert report["answers"] == 12
    rows = [row for name in ("hard", "easy", "pass") for row in read_lines(out / f"{name}.jsonl")]
    assert len(rows) == 6
    kept = texts(lines)
    (out / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:4]))
    waver("train", "instructions", "--out", out, *QUICK)
    assert texts(read_lines(out / "answers.jsonl")) == kept
    waver("train", "instructions", "--out", out, *QUICK, "--hard-rate", "0.6", "--pass-rate", "0.9")
    assert "holds another run" in waver("train", "instructions", "--out", out, *QUICK, "--seed", "2", code=1)

    data = tmp_path / "all.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    steps = ("--steps", "1", "--prompts", "2", "--group", "4", "--held-out", "2", "--length", "24", "--every", "1")
    recipe = ("--method", "light_if", "--set", "light_if.scale=0.03", "--report-to", "none")
    waver("train", "rl", "--out", run, "--task", "instructions", "--data", data, *recipe, *steps)
    logged = read_lines(run / "metrics.jsonl")
    assert any("light_if/capped" in line for line in logged)
    assert any("accuracy" in line for line in logged)
    engine = TransformersEngine("trained", TransformersConfig(model=str(run / "model")))
    assert engine.context_length > 0
    engine.check(Sampling(), begun=False)


def test_instructions_are_drawn_where_no_file_is_named() -> None:
    task = questions(RlRun(task="instructions", steps=2, prompts=3, held_out=4))
    assert (len(task.train), len(task.held_out), task.correct) == (6, 4, 1.0)
    assert all(row["constraints"] for row in (*task.train, *task.held_out))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--engine", "nobody"), "there is no engine 'nobody'"),
        (("--rules", "3", "2"), "--rules are the fewest and the most"),
        (("--hard-rate", "1"), "--hard-rate must be below"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    assert reason in waver("train", "instructions", "--out", tmp_path / "x", *QUICK, *options, code=1)
    assert not (tmp_path / "x").exists()


def test_a_file_that_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "?", "constraints": [{"kind": "rhyme"}]}\n' * 3)
    options = ("--task", "instructions", "--data", data, "--held-out", "1")
    assert "line 1: there is no constraint of the kind 'rhyme'" in waver(
        "train", "rl", "--out", tmp_path / "run", *options, code=2
    )
