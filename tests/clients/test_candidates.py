"""`waver calibrate policy`: the cheapest setting that can be promised is found, on questions that did not choose it."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.cli import app
from waver.clients import candidates, searching
from waver.clients.candidates import (
    REFERENCE,
    TRACE,
    Asking,
    Search,
    alike,
    check,
    front,
    measure,
    page,
    preset,
    split,
)
from waver.clients.options import Tuning
from waver.clients.questions import Question, Refused
from waver.clients.searching import COURSES, rolling, settings_from, statistics
from waver.engines.transforms import AdaptiveTemperature
from waver.job import read_lines
from waver.policies.switch.ead import EntropyAdaptiveDecoding


@pytest.fixture(scope="module")
def bundled(start: Callable[..., Running]) -> str:
    """The address of a server of the bundled pair."""
    models = {name: {"model": str(ROOT / "models" / name)} for name in ("small", "large")}
    return start(config={"engines": models, "presets": {}, "default_preset": None}).v1


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
               "--vary", "threshold=0.01,50", "--set", "monitor=small", "--set", "min_tokens=1",
               "--max-tokens", 40)  # fmt: skip
    told = calibrate(*options)
    found = json.loads((out / "report.json").read_text())
    assert found["reference"]["right"] == 1
    assert found["preset"] == found["compared"][found["chosen"]["setting"]]["policy"]
    written = (out / "preset.yaml").read_text()
    assert yaml.safe_load(written) == {"presets": {"calibrated": [found["preset"]]}}
    assert "loses at most 30 points with 95% confidence" in written
    assert found["chosen"]["cost"] < 1
    assert found["chosen"]["lost"] <= 0.3
    assert "at most 30 points with 95% confidence" in told
    answers = read_lines(out / "answers.jsonl")
    chooses = {line["line"] for line in answers if line["setting"] == 1 - found["chosen"]["setting"]}
    assert len({line["line"] for line in answers}) == 20 > len(chooses) >= 5

    async def never(*_: Any) -> None:
        raise AssertionError("everything was answered")

    monkeypatch.setattr(Asking, "_ask", never)
    assert calibrate(*options).partition("compared on")[2] == told.partition("compared on")[2], "but for the clock"
    assert "holds another run" in calibrate(*options, "--against", "small", code=1)


class Simulated(Asking):
    """A server whose settings are right as often, and cost as much, as they say."""

    async def _ask(self, setting: int, question: Question) -> dict[str, Any]:
        good, cost = (1.0, 1.0) if setting == REFERENCE else (self.settings[setting][key] for key in ("right", "cost"))
        luck = random.Random(question.text).random()  # the same for all settings: each loses what a better one loses
        line = {"setting": setting, "line": question.line, "spent": cost, "seconds": cost}
        known = luck < good if question.answers else None
        text = "" if known is not None else " ".join(
            "same" if random.Random(f"{question.text} {i}").random() < good else "other" for i in range(20)
        )  # fmt: skip
        return line | {"right": known, "tokens": 100, "large": round(100 * cost), "text": text}


class Ladder(Search):
    """Settings that say how good they are."""

    def settings(self, traces: Sequence[Sequence[float]] = (), share: float | None = None) -> list[dict[str, Any]]:
        return list(self.vary["settings"])


def simulated(
    settings: Sequence[dict[str, Any]], wanted: Tuning, count: int, seed: int, out: Path,
    answers: tuple[str, ...] = ("yes",),
) -> dict[str, Any]:  # fmt: skip
    questions = [Question(i, f"{seed} {i}", answers) for i in range(count)]
    asking = Simulated(None, (), wanted, out, {})  # type: ignore[arg-type]
    return asyncio.run(measure(asking, Ladder("x", {}, {"settings": settings}), questions, Console(quiet=True)))


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


def test_too_few_questions_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    file = sums(tmp_path / "q.jsonl", 20)
    told = calibrate(
        "ead", file, "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "out", "--loss", 0.05, code=1
    )
    assert "holds 20 questions, and it takes 79 to promise a loss of at most 5 points with 95% confidence" in told
    found = re.search(r"allow --loss ([\d.]+), or take --share 0.3", told)
    assert found
    questions = [Question(i, str(i), ("x",)) for i in range(20)]
    for enough in (Tuning(loss=float(found[1])), Tuning(share=0.3), Tuning(budget=0.5)):
        check(questions, enough, Search("ead", {}, {}), file)


def test_a_budget_takes_the_best_within_it(unwritten: None, tmp_path: Path) -> None:
    wanted = Tuning(budget=0.75)
    found = simulated(LADDER, wanted, 400, 1, tmp_path)
    assert found["preset"]["cost"] <= 0.75
    assert found["preset"]["right"] >= 0.96
    assert "None" not in page(found, wanted, 400)
    none = simulated(LADDER, Tuning(budget=0.01), 40, 1, tmp_path)
    assert "No setting costs at most 0.01" in page(none, Tuning(budget=0.01), 40)


def test_a_share_needs_no_answers(unwritten: None, tmp_path: Path) -> None:
    """Without answers the best setting is the one whose texts are most like the reference's."""
    wanted = Tuning(share=0.75)
    found = simulated(LADDER, wanted, 80, 1, tmp_path, answers=())
    assert found["preset"] == LADDER[2], "the dearest whose share is within"
    assert found["chosen"]["share"] == pytest.approx(0.74)
    assert "right" not in found["chosen"]
    assert "alike, cost 0.74" in page(found, wanted, 80)
    none = simulated(LADDER, Tuning(share=0.01), 40, 1, tmp_path, answers=())
    assert "No setting leaves at most 1%" in page(none, Tuning(share=0.01), 40)
    assert alike("the sum is 12", "the sum is 12") == 1
    assert alike("the sum is 12", "the sum is 13") == 0.75


@pytest.mark.parametrize(("share", "said"), [(0.0, "it never asks large"), (1.0, "it leaves everything to large")])
def test_a_setting_that_means_never_or_always_says_so(share: float, said: str) -> None:
    row = {"questions": 15, "right": 0.9, "interval": [0.7, 0.97], "cost": 0.2, "seconds": 0.5, "policy": {"name": "x"}}
    other = row | {"share": 0.5}
    one = row | {"share": share}
    found = {"compared": [one, other], "tested": [one], "chosen": one, "preset": {"name": "x"}, "reference": one}
    wanted = Tuning(budget=0.5)
    told, written = page(found, wanted, 20), preset(found, wanted, {"sha256": "0" * 64}, 20)
    assert f"On those 15 questions {said}" in told
    assert yaml.safe_load(told.partition("For a configuration:")[2]) == yaml.safe_load(written)
    assert f"# On those 15 questions {said}" in written
    found |= {"chosen": other, "tested": [other]}
    assert "On those" not in page(found, wanted, 20), "it hands over now and then"
    found |= {"chosen": one, "tested": [one], "compared": [one, one]}
    assert "On those" not in page(found, wanted, 20), "no setting differs in that: the policy is of another kind"


def test_only_what_is_worth_it_is_tested() -> None:
    rows = {
        0: {"cost": 0.5, "right": 0.9},
        1: {"cost": 0.6, "right": 0.9},  # dearer, no better
        2: {"cost": 0.7, "right": 0.95},
        3: {"cost": 1.2, "right": 0.99},  # dearer than the reference
        5: {"cost": 0.4, "right": 0.5},
    }
    assert front(rows) == [2, 0, 5]


def test_the_draws_are_apart() -> None:
    questions = [Question(i, str(i), ("x",)) for i in range(41)]
    chooses, tests = split(questions)
    assert (len(chooses), len(tests)) == (10, 31)
    assert {each.line for each in chooses} | {each.line for each in tests} == set(range(41))


def test_every_combination_is_tried() -> None:
    made = Search("ead", {"monitor": "small"}, {"threshold": [0.1, 1], "window": [1, 5]}).settings()
    assert len(made) == 4
    assert all(each["monitor"] == "small" for each in made)
    with pytest.raises(Refused, match="Say which parameters of top_w"):
        Search("top_w", {}, {}).settings()
    with pytest.raises(Refused, match="100 settings are too many"):
        Search("ead", {}, {"threshold": list(range(100))}).settings()


def test_settings_follow_from_entropies() -> None:
    """Thresholds are quantiles of what each setting would have compared, so that they scale with the pair."""
    rng = random.Random(2)
    traces = [[rng.expovariate(2.0) for _ in range(50)] for _ in range(20)]
    made = settings_from("ead", {}, traces, None)
    assert {"name": "ead"} in made, "the defaults are among them"
    tried = [each for each in made if len(each) > 1]
    for key in ("window", "min_tokens", "monitor", "timing", "threshold_down"):
        assert len({each.get(key) for each in tried}) > 1, f"{key} is searched"
    assert len(tried) == 3 * len(COURSES)
    for each in tried:
        EntropyAdaptiveDecoding(**each)
        means = [value for trace in traces for value in rolling(trace, each["window"])]
        share = sum(value >= each["threshold"] for value in means) / len(means)
        assert min(abs(share - wanted) for wanted in (0.1, 0.2, 0.4)) < 0.01
    doubled = settings_from("ead", {}, [[2 * value for value in trace] for trace in traces], None)
    assert [each["threshold"] for each in doubled if len(each) > 1] == pytest.approx(
        [2 * each["threshold"] for each in tried], rel=1e-2
    )
    assert all(each["monitor"] == "small" for each in settings_from("ead", {"monitor": "small"}, traces, 0.3))
    assert rolling([1.0, 2.0, 6.0], 2) == [1.0, 1.5, 4.0]

    routed = settings_from("route", {"draft_tokens": 4}, traces, 0.5)
    assert [each["draft_tokens"] for each in routed] == [4, 4, 4]
    means = [sum(trace[:4]) / 4 for trace in traces]
    assert sum(value >= routed[0]["threshold"] for value in means) == pytest.approx(10, abs=1)

    warmed = settings_from("adaptive_temperature", {}, traces, None)
    flat = sorted(value for trace in traces for value in trace)
    assert warmed[0]["pivot"] == pytest.approx(flat[800], rel=0.02)
    assert warmed[0]["high"] == pytest.approx(flat[-1], rel=5e-3)
    assert [each["span"] for each in warmed] == [0.05, 0.1, 0.2, 0.3]
    for each in (*warmed, {"name": "adaptive_temperature", **statistics([[0.0, 0.0]])}):
        AdaptiveTemperature.model_validate(each)
    assert [each["strategy"] for each in settings_from("diffadapt", {}, [], None)] == ["auto", "easy", "normal", "hard"]
    with pytest.raises(Refused, match="carry no entropies"):
        settings_from("ead", {}, [[]], None)


@pytest.mark.parametrize("name", ["ead", "route", "adaptive_temperature", "diffadapt"])
def test_policies_by_their_own_entropies_without_answers(
    bundled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(searching, "COURSES", COURSES[:1])
    monkeypatch.setattr(searching, "DRAFTS", (8,))
    monkeypatch.setattr(searching, "SPANS", (0.1,))
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {i} + {i + 3}?"}) + "\n" for i in range(11, 21)))
    goal = ("--budget", 9) if name in ("adaptive_temperature", "diffadapt") else ("--share", 0.6)
    told = calibrate(name, file, "--base-url", bundled, "--out", tmp_path / "out", *goal, "--max-tokens", 24,
                     "--temperature", 0.5)  # fmt: skip
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    made = yaml.safe_load((tmp_path / "out" / "preset.yaml").read_text())
    assert made == {"presets": {"calibrated": [found["preset"]]}}
    assert found["preset"]["name"] == name
    assert "alike, cost" in told
    traced = [line for line in read_lines(tmp_path / "out" / "answers.jsonl") if line["setting"] == TRACE]
    if name == "diffadapt":
        assert not traced
        assert {each["policy"]["strategy"] for each in found["compared"]} == {"easy", "normal", "hard"}, "no probe here"
    else:
        assert len(traced) == 2, "a quarter of the prompts"
        assert all(line["entropies"] for line in traced)
    if name == "adaptive_temperature":
        assert found["preset"]["low"] < found["preset"]["pivot"] < found["preset"]["high"]
    if name in ("ead", "route"):
        assert all(row["share"] <= 0.6 for row in found["compared"] if row["setting"] == found["chosen"]["setting"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "Give --loss"),
        (("--loss", 0.1, "--budget", 0.5), "Give --loss"),
        (("--loss", 0.1, "--vary", "threshold"), "KEY=VALUE,VALUE"),
        (("--loss", 0.1, "--vary", "threshold=[0.1"), "cannot be read"),
        (("--loss", 0.1, "--scorer", "luck"), "no scorer 'luck'"),
        (("--share", 0.1, "--budget", 0.5), "Give --loss"),
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
