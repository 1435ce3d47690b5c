"""`waver calibrate policy`: the cheapest setting that can be promised is found, on questions that did not choose it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from rich.console import Console
from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.cli import app
from waver.clients import candidates
from waver.clients.candidates import REFERENCE, Asking, front, measure, page, settings_of, split
from waver.clients.options import Tuning
from waver.clients.questions import Question, Refused
from waver.job import read_lines
from waver.server.logs import configure_logs


@pytest.fixture(scope="module")
def bundled(start: Callable[..., Running]) -> Iterator[str]:
    """The address of a server of the bundled pair."""
    before = structlog.get_config()
    configure_logs(logging.WARNING)  # standard output belongs to the command
    models = {name: {"model": str(ROOT / "models" / name)} for name in ("small", "large")}
    yield start(config={"engines": models, "presets": {}, "default_preset": None}).v1
    structlog.configure(**before)


def calibrate(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["calibrate", "policy", *map(str, options)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result.output


def sums(file: Path, count: int) -> Path:
    rows = [{"question": f"What is {i} + {i + 3}?", "answer": str(2 * i + 3)} for i in range(11, 11 + count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_on_the_bundled_pair_and_a_stopped_run_goes_on(
    bundled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = ("ead", sums(tmp_path / "q.jsonl", 20), "--base-url", bundled, "--out", out, "--loss", 0.3,
               "--vary", "threshold=0.01,50", "--set", "monitor=small", "--max-tokens", 40)  # fmt: skip
    told = calibrate(*options)
    found = json.loads((out / "report.json").read_text())
    assert found["reference"]["right"] == 1
    assert found["preset"] == json.loads(json.dumps(found["compared"][found["chosen"]["setting"]]["policy"]))
    assert found["chosen"]["cost"] < 1
    assert found["chosen"]["lost"] <= 0.3
    assert "at most 30 points with 95% confidence" in told
    answers = read_lines(out / "answers.jsonl")
    chooses = {line["line"] for line in answers if line["setting"] == 1 - found["chosen"]["setting"]}
    assert len({line["line"] for line in answers}) == 20 > len(chooses) >= 5

    async def never(*_: Any) -> None:
        raise AssertionError("everything was answered")

    monkeypatch.setattr(Asking, "_ask", never)
    assert calibrate(*options) == told
    assert "holds another run" in calibrate(*options, "--against", "small", code=1)


class Simulated(Asking):
    """A server whose settings are right as often, and cost as much, as they say."""

    async def _ask(self, setting: int, question: Question) -> dict[str, Any]:
        good, cost = (1.0, 1.0) if setting == REFERENCE else (self.settings[setting][key] for key in ("right", "cost"))
        luck = random.Random(question.text).random()  # the same for all settings: each loses what a better one loses
        return {"setting": setting, "line": question.line, "right": luck < good, "spent": cost, "seconds": cost}


def simulated(settings: Sequence[dict[str, Any]], wanted: Tuning, count: int, seed: int, out: Path) -> dict[str, Any]:
    questions = [Question(i, f"{seed} {i}", ("yes",)) for i in range(count)]
    asking = Simulated(None, settings, wanted, out, {})  # type: ignore[arg-type]
    return asyncio.run(measure(asking, questions, Console(quiet=True)))


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates.job, "append_line", lambda *_: None)


LADDER = [{"name": "x", "right": 1 - loss, "cost": 0.9 - 8 * loss} for loss in (0.0, 0.01, 0.02, 0.04, 0.06, 0.1)]


def test_a_promise_is_kept_as_often_as_it_says(unwritten: None, tmp_path: Path) -> None:
    """On 200 draws of 240 questions, the chosen setting loses more than 5 points in at most 5 % of them."""
    wanted = Tuning(loss=0.05)
    broken = chosen = 0
    for seed in range(200):
        preset = simulated(LADDER, wanted, 240, seed, tmp_path)["preset"]
        chosen += preset is not None and preset["cost"] < 0.9
        broken += preset is not None and preset["right"] < 0.95
    assert broken / 200 <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    assert chosen > 100, "and something cheaper is found most of the time"


def test_few_questions_promise_nothing_and_say_so(unwritten: None, tmp_path: Path) -> None:
    wanted = Tuning(loss=0.01)
    found = simulated(LADDER, wanted, 40, 1, tmp_path)
    assert found["chosen"] is None
    assert "it takes 399 at the least. Use large alone" in page(found, wanted, 40)


def test_a_budget_takes_the_best_within_it(unwritten: None, tmp_path: Path) -> None:
    wanted = Tuning(budget=0.75)
    found = simulated(LADDER, wanted, 400, 1, tmp_path)
    assert found["preset"]["cost"] <= 0.75
    assert found["preset"]["right"] >= 0.96
    assert "None" not in page(found, wanted, 400)
    none = simulated(LADDER, Tuning(budget=0.01), 40, 1, tmp_path)
    assert "No setting costs at most 0.01" in page(none, Tuning(budget=0.01), 40)


def test_only_what_is_worth_it_is_tested() -> None:
    rows = [
        {"cost": 0.5, "right": 0.9},
        {"cost": 0.6, "right": 0.9},  # dearer, no better
        {"cost": 0.7, "right": 0.95},
        {"cost": 1.2, "right": 0.99},  # dearer than the reference
        {"cost": 0.4, "right": 0.5},
    ]
    assert front(rows) == [2, 0, 4]


def test_the_draws_are_apart() -> None:
    questions = [Question(i, str(i), ("x",)) for i in range(41)]
    chooses, tests = split(questions)
    assert (len(chooses), len(tests)) == (10, 31)
    assert {each.line for each in chooses} | {each.line for each in tests} == set(range(41))


def test_every_combination_is_tried() -> None:
    made = settings_of("ead", {"monitor": "small"}, {"threshold": [0.1, 1], "window": [1, 5]})
    assert len(made) == 4
    assert all(each["monitor"] == "small" for each in made)
    assert len(settings_of("ead", {"threshold": 0.1}, {})) == 2
    with pytest.raises(Refused, match="Say which parameters of top_w"):
        settings_of("top_w", {}, {})
    with pytest.raises(Refused, match="100 settings are too many"):
        settings_of("ead", {}, {"threshold": list(range(100))})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "Give --loss"),
        (("--loss", 0.1, "--budget", 0.5), "Give --loss"),
        (("--loss", 0.1, "--vary", "threshold"), "KEY=VALUE,VALUE"),
        (("--loss", 0.1, "--vary", "threshold=[0.1"), "cannot be read"),
        (("--loss", 0.1, "--scorer", "luck"), "no scorer 'luck'"),
    ],
)
def test_what_cannot_be_is_refused(options: tuple[Any, ...], sentence: str, tmp_path: Path) -> None:
    arguments = (
        "ead",
        sums(tmp_path / "q.jsonl", 10),
        "--out",
        tmp_path / "out",
        "--base-url",
        "http://127.0.0.1:9/v1",
    )
    result = CliRunner().invoke(app, ["calibrate", "policy", *map(str, (*arguments, *options))], env={"COLUMNS": "400"})
    assert result.exit_code != 0
    assert sentence in result.output


def test_an_unknown_parameter_is_the_servers_word(bundled: str, tmp_path: Path) -> None:
    told = calibrate("ead", sums(tmp_path / "q.jsonl", 10), "--base-url", bundled, "--out", tmp_path / "out",
                     "--loss", 0.5, "--vary", "colour=1,2", code=1)  # fmt: skip
    assert "colour" in told
