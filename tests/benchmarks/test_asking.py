"""The benchmark of asking back: games are kept and gone on with, users are the same for all, and figures are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from waver.benchmarks.asking import LINES, SHOWN, WAYS, Game, answer, app, coverage, page, summary, tasks_of, world_task
from waver.benchmarks.summary_sections import asking
from waver.job import read_lines


def call(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def test_games_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    told = ("--task", "triage", "--repeats", 2, "--alpha", 0.1, "--alpha", 0.02, "--work", tmp_path / "work",
            "--out", tmp_path)  # fmt: skip
    call(*told)
    lines = read_lines(tmp_path / "work" / LINES)
    assert len(lines) == 2 * 2 * 10 * len(WAYS)
    assert {line["stopped"] for line in lines} <= {"set", "spread", "questions", "length"}
    made = json.loads((tmp_path / "asking.json").read_text())["tasks"]["triage"]
    right = {(row["way"], row["alpha"]): row["right"]["share"] for row in made["rows"]}
    asked = {(row["way"], row["alpha"]): row["asked"]["mean"] for row in made["rows"]}
    assert all(right[way, 0.02] >= right[way, 0.1] - 0.05 and asked[way, 0.02] > asked[way, 0.1] for way in WAYS)
    assert asked["c_ip", 0.1] < asked["random", 0.1]
    assert all(abs(each["share"] - (1 - each["alpha"])) < 0.03 for each in made["coverage"])
    assert "0.1" in (tmp_path / "asking.md").read_text()
    (tmp_path / "work" / LINES).write_text("".join(json.dumps(line) + "\n" for line in lines[3:]))
    call(*told)
    again = read_lines(tmp_path / "work" / LINES)
    assert again[:-3] == lines[3:], "what is there is not played anew"
    key = lambda line: (line["way"], line["truth"], line["alpha"], line["repeat"])  # noqa: E731
    assert sorted(again, key=key) == sorted(lines, key=key), "the same seed, the same games"
    assert "holds another run" in call(*told, "--seed", 5, code=1)


def test_a_model_is_calibrated_and_asks(tmp_path: Path) -> None:
    pets = tmp_path / "pets.yaml"
    questions = ["Does it bark?", "Does it swim?", "Is it golden?"]
    affirmed: dict[str, list[int]] = {"cat": [], "dog": [0, 1], "gold fish": [1, 2], "fish": [1]}
    task = {"subject": "pet", "hypotheses": list(affirmed), "questions": questions, "affirmed": affirmed}
    pets.write_text(json.dumps(task))
    told = ("--task", pets, "--predictor", "model", "--wrong", 0, "--repeats", 1, "--alpha", 0.1, "--length", 2,
            "--work", tmp_path / "work", "--out", tmp_path)  # fmt: skip
    assert "weighed by small" in call(*told)
    made = json.loads((tmp_path / "asking.json").read_text())
    assert made["toy"]
    assert made["tasks"]["pets"]["coverage"][0]["histories"] == 200
    assert len(read_lines(tmp_path / "work" / SHOWN)) == 2 * 2 * 100
    assert {line["asked"] for line in read_lines(tmp_path / "work" / LINES)} <= {0, 1, 2}
    call(*told)
    assert len(read_lines(tmp_path / "work" / SHOWN)) == 400, "what was shown is not shown anew"


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    assert "--repeats 1" in call("--wrong", 0, code=2)
    assert "cannot be read" in call("--task", tmp_path / "none.yaml", "--out", tmp_path, code=1)


def test_users_answer_alike_whoever_asks() -> None:
    task = world_task()
    assert len({task.affirmed[each] for each in task.hypotheses}) == len(task.hypotheses) == 20
    answers = {
        way: [answer(task, Game("towns", way, alpha, 3, 7), q, 0.3, 0) for q in range(len(task.questions))]
        for way, alpha in zip(WAYS, (0.1, 0.2, 0.3, 0.4), strict=True)
    }
    assert all(own == answers["c_ip"] for own in answers.values())
    wrong = [
        answer(task, Game("towns", "ip", 0.1, repeat, truth), q, 0.3, 0) != task.answer(truth, q)
        for repeat in range(5) for truth in range(20) for q in range(len(task.questions))
    ]  # fmt: skip
    assert 0.26 < sum(wrong) / len(wrong) < 0.34
    assert list(tasks_of([])) == ["animals", "triage", "towns"]


def test_coverage_goes_by_the_first_hundred_histories() -> None:
    calibration = [i / 100 for i in range(1, 101)]
    found = coverage([[*calibration, *([0.05] * 30 + [0.5] * 70)]], 0.1)
    assert (found["share"], found["histories"]) == (0.7, 100)


def games(way: str, alpha: float, asked: int, right: int) -> list[dict[str, Any]]:
    """Ten games, of which so many are right."""
    return [
        {"way": way, "alpha": alpha, "repeat": 0, "truth": truth, "asked": asked, "right": truth < right, "held": True}
        for truth in range(10)
    ]


def test_figures_of_games_that_are_made_up() -> None:
    lines = [*games("c_ip", 0.1, 8, 10), *games("c_ip", 0.3, 4, 6)]
    lines += [*games("ip", 0.1, 12, 10), *games("ip", 0.3, 8, 6)]
    lines += [*games("bound", 0.1, 8, 5), *games("bound", 0.3, 4, 5)]
    lines += [*games("random", 0.1, 20, 9), *games("random", 0.3, 10, 5)]
    found = summary(lines, 10, [0.1, 0.3])
    level = next(each for each in found["levels"] if each["right"] == 0.8)
    assert level["questions"] == pytest.approx({"c_ip": 6.0, "ip": 10.0, "bound": None, "random": 17.5})
    assert set(level["over"]) == {"ip", "random"}
    assert level["over"]["ip"]["mean"] == pytest.approx(-4)
    first = next(row for row in found["rows"] if (row["way"], row["alpha"]) == ("c_ip", 0.3))
    assert (first["games"], first["asked"]["mean"], first["right"]["share"]) == (10, 4.0, 0.6)
    settings = {"wrong": 0.05, "repeats": 1, "length": 20, "predictor": "table"}
    held = [{"alpha": 0.1, "share": 0.9, "interval": (0.88, 0.92), "histories": 100}]
    whole = {"settings": settings, "model": "small", "tasks": {"pets": {**found, "coverage": held}}}
    assert "| 80% | 6.00 | 10.00 |  | 17.50 |" in "\n".join(page(whole))
    assert "pets, 90% right: `c_ip` asks 7.0 questions, `ip` 11.0 (-4.0, " in asking(whole, "").verdict
