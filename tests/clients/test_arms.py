"""`waver calibrate arms`: requests within a budget find the better arm; stopped runs go on; bad input is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.cli import app
from waver.clients import arms
from waver.job import read_lines

ARMS = ("--arm", "noise", "--arm", "good", "--arm", "good=[{name: min_p, p: 0.1}]")
QUICK = (
    "--steps",
    "2",
    "--rollouts",
    "8",
    "--instances",
    "12",
    "--classes",
    "2",
    "--users",
    "12",
    "--max-tokens",
    "40",
)


@pytest.fixture(scope="module")
def server(start: Callable[..., Running], tiny_pair: dict[str, Path]) -> Running:
    """A model that can add, and one of random weights."""
    models = {"good": str(ROOT / "models" / "small"), "noise": str(tiny_pair["small"])}
    return start(
        config={
            "engines": {name: {"model": each} for name, each in models.items()},
            "presets": {},
            "default_preset": None,
        }
    )


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {i} + {i + 3}?", "answer": str(2 * i + 3)} for i in range(11, 19)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def calibrate(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["calibrate", "arms", *map(str, options)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result.output


def test_the_better_arm_is_found_and_a_stopped_run_goes_on(
    server: Running, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = (questions, *ARMS, "--budget", "12", "--scorer", "number", "--base-url", server.v1, *QUICK)
    said = calibrate(*options, "--out", out)
    assert said.strip().splitlines()[-1].startswith("best: good")
    report = json.loads((out / "report.json").read_text())
    assert sum(row["requests"] for row in report["arms"]) == 12
    assert set(report["simulated_regret"]) == {"learned", "uniform", "entropy", "thompson", "top_two"}
    noise = next(row for row in report["arms"] if row["arm"] == "noise")
    assert not noise["requests"] or noise["right"] < 0.5
    lines = read_lines(out / "answers.jsonl")
    asked = [(line["arm"], line["line"]) for line in lines]
    assert len(set(asked)) == 12  # no arm is asked a question twice
    # Cut off after five requests, it makes the other seven, to the same end, and trains nothing again.
    (out / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:5]) + '{"arm"')
    with monkeypatch.context() as patch:
        patch.setattr(
            "waver.training.selection.active.train.train_robust", lambda *_: pytest.fail("trained a second time")
        )
        calibrate(*options, "--out", out)
    assert read_lines(out / "answers.jsonl") == lines
    assert "holds another run" in calibrate(*options, "--out", out, "--seed", "2", code=1)


def test_every_question_may_be_used(server: Running, questions: Path, tmp_path: Path) -> None:
    """With the budget of all requests each arm is asked all questions; a price weighs what they cost."""
    out = tmp_path / "run"
    given = ("--arm", "good", "--arm", "noise", "--budget", "16", "--strategy", "thompson", "--price", "0.5")
    calibrate(questions, *given, "--out", out, "--scorer", "number", "--base-url", server.v1, *QUICK)
    report = json.loads((out / "report.json").read_text())
    assert [row["requests"] for row in report["arms"]] == [8, 8]
    good = report["arms"][0]
    assert good["right"] > 0.5
    assert good["reward"] <= good["right"]
    for line in read_lines(out / "answers.jsonl"):
        assert line["reward"] == pytest.approx(min(max(line["right"] - 0.5 * line["cost"], 0), 1))
    assert not (out / "policy.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--arm", "a", "--budget", "2"), "at least two --arm"),
        (("--arm", "a", "--arm", "a", "--budget", "2"), "each once"),
        (("--arm", "a", "--arm", "b=3", "--budget", "2"), "write MODEL, or MODEL="),
        (("--arm", "a", "--arm", "b=[", "--budget", "2"), "cannot be read"),
        (("--arm", "a", "--arm", "b", "--budget", "17"), "lower --budget"),
        (("--arm", "a", "--arm", "b", "--budget", "2", "--strategy", "best"), "no strategy 'best'"),
        (("--arm", "a", "--arm", "b", "--budget", "2", "--scorer", "best"), "no scorer 'best'"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert reason in calibrate(questions, *options, "--out", out, "--base-url", "http://127.0.0.1:9/v1", code=1)
    assert not out.exists()


def test_answers_are_needed(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "What is 1 + 1?"}\n')
    given = ("--arm", "a", "--arm", "b", "--budget", "2", "--out", tmp_path / "run")
    assert "line 1 has no answer" in calibrate(file, *given, code=1)


def test_arms_are_read() -> None:
    assert arms.read_arm("waver/frugal") == arms.Arm("waver/frugal", "waver/frugal")
    assert arms.read_arm("m={name: ead}").policy == [{"name": "ead"}]
    assert arms.read_arm("m=[]").policy == []
