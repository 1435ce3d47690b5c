"""`waver calibrate l_rag` on the bundled pair: what it promises is kept on questions that it has not seen."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.cli import app
from waver.clients.client import report
from waver.clients.outcome import Answer, Pair, as_json, extreme, numbers, page
from waver.clients.questions import Question, Refused, read
from waver.training.pair.world import Item, documents, draw, score_text, towns

CALIBRATION, FRESH = 901, 902


def mixed(seed: int, each: int) -> list[Item]:
    """Facts that the large model knows by heart, and as many that only documents tell."""
    return [*draw("frequent_facts", seed, each), *draw("tail_facts", seed, each)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "engines": {"large": {"model": str(ROOT / "models" / "large")}},
        "presets": {"mild": [{"name": "min_p", "p": 0.1}]},
        "policies": {"l_rag": {"top_k": 1, "mode": "lexical"}},
        "default_preset": "mild",
        "retrieval": {"path": str(tmp_path_factory.mktemp("data") / "collections")},
    }


@pytest.fixture(scope="module")
def world(start: Callable[..., Running], settings: dict[str, Any]) -> Running:
    """A collection that tells of all towns that are asked about: of others, lookups would only mislead."""
    running = start(config=settings)
    asked = {item.passage for seed in (CALIBRATION, FRESH) for item in draw("tail_facts", seed, 20)}
    chosen = [each for each in documents() if each.text in asked] + documents()[:10]
    with running.http() as http:
        assert http.post("/v1/collections", json={"name": "velmora"}).status_code == 200
        rows = [{"id": each.id, "text": each.text} for each in chosen]
        rows += [{"id": each.name, "text": each.description(random.Random(1))} for each in towns()["frequent"]]
        rows = list({row["id"]: row for row in rows}.values())
        assert http.post("/v1/collections/velmora/documents", json={"documents": rows}).status_code == 200
    return running


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = [{"question": item.prompt, "answer": [item.answer, "no such thing"]} for item in mixed(CALIBRATION, 20)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def calibrate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["calibrate", "l_rag", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def by_loss(world: Running, file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Calibrate for a loss; return the output and the folder that it writes."""
    out = tmp_path_factory.mktemp("out") / "deep"
    done = calibrate(file, "-n", "velmora", "--base-url", world.v1, "--loss", 0.2, "--model", "large", "--out", out)
    assert done.exit_code == 0, done.output
    return done.stdout, out


@pytest.mark.parametrize(("rate", "said"), [(1.0, "means always"), (0.0, "means never"), (0.025, None), (0.975, None)])
def test_a_threshold_that_decides_nothing_is_named(rate: float, said: str | None) -> None:
    remark = extreme({"preset": {"gate": "entropy"}, "expected_rate": rate, "questions": 40})
    assert remark is None if said is None else remark is not None and said in remark


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize(("rate", "said"), [(1.0, "means always"), (0.0, "means never"), (0.5, None)])
def test_a_rate_of_all_or_none_is_reached_and_named(above: bool, rate: float, said: str | None) -> None:
    found = numbers([pair(i / 10, "no", "yes") for i in range(10)], above, yes, rate, None)
    assert found["expected_rate"] == rate
    found |= {"model": "m", "beside": [], "at_once": 1, "preset": {"gate": "entropy", "collection": "c"}}
    remark = json.loads(as_json(found))["remark"]
    assert remark is None if said is None else said in remark
    assert said is None or said in page(found)


def preset(stdout: str) -> dict[str, Any]:
    """The last line, as it would be read from a configuration."""
    return yaml.safe_load(f"careful: [{stdout.splitlines()[-1]}]")["careful"][0]


def ask(world: Running, items: list[Item], policy: dict[str, Any]) -> tuple[float, float]:
    """Accuracy and rate of lookups."""
    with world.openai() as client:

        def one(item: Item) -> tuple[bool, bool]:
            response = client.chat.completions.create(
                model="large",
                messages=[{"role": "user", "content": item.prompt}],
                temperature=0,
                extra_body={"policy": [policy]},
            )
            told = report(response).retrieval
            assert told is not None
            text = response.choices[0].message.content or ""
            return score_text(item.task, item.prompt, item.answer, text), told["triggered"]

        with ThreadPoolExecutor(8) as pool:
            right, looked = zip(*pool.map(one, items), strict=True)
    return sum(right) / len(items), sum(looked) / len(items)


def test_a_budget_is_kept_on_a_fresh_draw(world: Running, file: Path) -> None:
    done = calibrate(file, "-n", "velmora", "--base-url", world.v1, "--rate", 0.5, "--model", "large", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["target"] == {"rate": 0.5}
    policy = found["preset"]
    assert policy["expected_rate"] == 0.5
    _, rate = ask(world, mixed(FRESH, 20), policy)
    assert rate == pytest.approx(0.5, abs=0.1)


def test_always_is_reached_at_half_the_lookups(world: Running, by_loss: tuple[str, Path]) -> None:
    policy = preset(by_loss[0])
    assert policy["expected_rate"] <= 0.5
    fresh = mixed(FRESH, 20)
    accuracy, rate = ask(world, fresh, policy)
    always, all_of_them = ask(world, fresh, {"name": "l_rag", "collection": "velmora", "gate": "always"})
    never, _ = ask(world, fresh, {"name": "l_rag", "collection": "velmora", "gate": "never"})
    assert all_of_them == 1
    assert always >= 0.9
    assert never < 0.6
    assert accuracy >= always - 0.2 - 0.1, "the bound is of all questions, and these are 40"
    assert rate <= 0.55


def test_what_is_printed_and_written(by_loss: tuple[str, Path]) -> None:
    stdout, out = by_loss
    for said in (
        "40 questions to large; collection velmora, gate entropy, for a loss of at most 20 points, with 95% confidence",
        "AUROC",
        "on this",
    ):
        assert said in stdout
    found = json.loads((out / "calibration.json").read_text())
    assert found["preset"] == preset(stdout) == {
        "name": "l_rag", "collection": "velmora", "gate": "entropy",
        "threshold": found["threshold"], "expected_rate": found["expected_rate"],
    }  # fmt: skip
    assert found["accuracy"]["never"]["share"] < 0.6
    assert found["accuracy"]["threshold"]["share"] >= found["accuracy"]["always"]["share"] - 0.2
    assert found["auroc"] > 0.9
    assert len(found["scores"]) == 40
    assert [found["curve"][0]["rate"], found["curve"][-1]["rate"]] == [0, 1]
    assert all(found["seconds"][part] > 0 for part in ("gate", "retrieval", "generation", "gated", "always"))
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_it_starts_a_server_of_its_own(world: Running, settings: dict[str, Any], file: Path, tmp_path: Path) -> None:
    """With flare, whose gate fires at low scores, a preset whose other policies stay, and without answers."""
    (tmp_path / "waver.yaml").write_text(yaml.safe_dump(settings))
    rows = [{"question": json.loads(line)["question"]} for line in file.read_text().split("\n")[10:30]]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["questions.jsonl", "-n", "velmora", "-c", "waver.yaml", "--gate", "flare", "--set", "top_k=2"]
    done = subprocess.run(
        [sys.executable, "-m", "waver", "calibrate", "l_rag", *arguments],
        capture_output=True, text=True, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "20 questions to waver/mild, with min_p;" in done.stdout
    assert "accuracy" not in done.stdout
    policy = preset(done.stdout)
    assert (policy["gate"], policy["top_k"], policy["expected_rate"]) == ("flare", 2, 0.5)
    assert 0 < policy["threshold"] < 1


GOOD = '{"question": "Who?", "answer": "me"}\n'


@pytest.mark.parametrize(
    ("content", "arguments", "sentence"),
    [
        (None, [], "cannot be read: No such file or directory."),
        ("\n\n", [], "holds no questions"),
        (f"{GOOD}\n{{broken\n", [], "line 3 is not JSON"),
        (f"{GOOD}[]\n", [], "line 2 has no question"),
        ('{"question": " "}\n', [], "line 1 has no question"),
        ('{"question": "\\ud800?"}\n', [], "half a character"),
        ('{"question": "Who?", "answer": []}\n', [], "line 1: `answer` is a text"),
        ('{"question": "Who?", "answer": {"a": 1}}\n', [], "line 1: `answer` is a text"),
        (f'{GOOD}{{"question": "Who?"}}\n', ["--loss", 0.01], "line 2 has no answer: --loss needs them all"),
        (GOOD, ["--scorer", "number"], "the answer 'me' is no number"),
        (GOOD, ["--scorer", "luck"], "there are contains, exact, number"),
        (GOOD, ["--gate", "always"], "The gate always has no threshold"),
        (GOOD, ["--gate", "never"], "The gate never has no threshold"),
        (GOOD, ["--gate", "random"], "The gate random has no threshold"),
        (GOOD, ["--gate", "luck"], "There is no gate 'luck'"),
        (GOOD, ["--gate", "margin", "--pooling", "max"], "leave --pooling out"),
        (GOOD, ["--loss", 0], "No number of questions can promise a loss of 0"),
        (GOOD, ["--rate", 0.5, "--loss", 0.01], "give one of --rate and --loss"),
        (GOOD, ["--rate", 50], "between 0 and 1"),
        (GOOD, ["--set", "threshold=1"], "--set threshold"),
        (GOOD, ["--set", "top_k"], "KEY=VALUE"),
        (GOOD, ["--set", "top_k=[1"], "cannot be read"),
        (GOOD, ["--config", "nowhere.yaml"], "cannot be read"),
        (GOOD, ["--base-url", "http://127.0.0.1:9/v1"], "No server answers at http://127.0.0.1:9/v1"),
        (GOOD, ["--base-url", "127.0.0.1:9"], "No server answers at 127.0.0.1:9"),
    ],
)
def test_what_cannot_be_done_is_said(content: str | None, arguments: list[Any], sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "questions.jsonl").write_text(content)
    done = calibrate(tmp_path / "questions.jsonl", "-n", "velmora", *arguments)
    assert done.exit_code in (1, 2)
    assert sentence in " ".join(done.stderr.replace("│", " ").split())


def test_what_a_server_refuses_is_said(world: Running, file: Path, tmp_path: Path) -> None:
    where = ("--base-url", world.v1)
    few = tmp_path / "few.jsonl"
    few.write_text(GOOD)
    for arguments, sentence in (
        ((file, "-n", "nowhere"), "nowhere"),
        ((file, "-n", "velmora", "--model", "luck"), "There is no model 'luck'"),
        ((file, "-n", "velmora", "--set", "top_k=0"), "top_k"),
        ((few, "-n", "velmora", "--set", "colour=red"), "colour"),
    ):
        done = calibrate(*arguments, *where)
        assert done.exit_code == 1
        assert sentence in done.stderr
    assert "1 questions are few" in done.stderr


def test_a_question_that_is_too_long_is_left_out(world: Running, file: Path, tmp_path: Path) -> None:
    lines = [*file.read_text().splitlines()[:19], json.dumps({"question": "long " * 5000, "answer": "x"})]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    done = calibrate(tmp_path / "long.jsonl", "-n", "velmora", "--base-url", world.v1, "--rate", 0.1)
    assert done.exit_code == 0, done.output
    assert "left out line 20" in done.stderr
    assert done.stdout.startswith("19 questions")


def pair(score: float | None, first: str, second: str) -> Pair:
    seconds = {"gate": 1.0, "retrieval": 1.0, "generation": 1.0}
    question = Question(1, "?", ("yes",))
    return Pair(question, Answer(first, score, score is None, seconds), Answer(second, 0.0, True, seconds))


def yes(text: str, _: Question) -> bool:
    return text == "yes"


def test_empty_drafts_count_as_lookups() -> None:
    """They have no score and always retrieve: of 10 questions, 2 of those, a rate of 0.4 leaves 2 to choose."""
    pairs = [pair(None, "yes", "yes")] * 2 + [pair(i / 10, "no", "yes") for i in range(8)]
    found = numbers(pairs, True, yes, 0.4, None)
    assert (found["expected_rate"], found["empty_drafts"]) == (0.4, 2)
    assert 0.5 <= found["threshold"] < 0.6
    assert found["accuracy"]["never"]["share"] == 0, "an empty answer is a wrong one"
    assert found["accuracy"]["threshold"]["share"] == 0.4
    assert numbers(pairs, True, yes, 0.1, None)["expected_rate"] == 0.2, "no threshold can do with less"
    with pytest.raises(Refused, match="Every draft was empty"):
        numbers(pairs[:2], True, yes, 0.5, None)


def test_where_looking_up_does_harm_nothing_is_looked_up() -> None:
    found = numbers([pair(i / 100, "yes", "no") for i in range(100)], True, yes, None, 0.05)
    assert found["expected_rate"] == 0
    assert found["auroc"] is None


def test_a_gate_that_fires_at_low_scores_loses_no_more_than_is_promised() -> None:
    pairs = [pair(i / 400, "no" if i < 120 else "yes", "yes") for i in range(400)]
    below = numbers(pairs, False, yes, None, 0.05)
    assert 0.27 <= below["expected_rate"] <= 0.37
    assert below["target"] == {"loss": 0.05, "confidence": 0.95}
    assert below["auroc"] == 1


def test_what_cannot_be_promised_is_not() -> None:
    """Always looking up is all that ten questions allow for a point, however well the score tells."""
    found = numbers([pair(i / 10, "no" if i > 6 else "yes", "yes") for i in range(10)], True, yes, None, 0.01)
    assert found["threshold"] is None
    assert found["expected_rate"] == 1
    told = page({
        **found, "model": "large", "beside": [], "at_once": 1,
        "preset": {"name": "l_rag", "collection": "c", "gate": "always"},
    })  # fmt: skip
    assert "No threshold can be promised on 10 questions. It takes 399 at the least" in told
    assert "none: always look things up" in told


@pytest.mark.parametrize("informed", [True, False])
def test_a_promise_is_kept_as_often_as_it_says(informed: bool) -> None:
    """On 300 draws of 200 questions: the true loss of the chosen threshold is above 5 points in at most 5 % of them."""
    rng = random.Random(7)
    broken = 0
    for _ in range(300):
        pairs = []
        for _ in range(200):
            score = rng.random()
            wrong = rng.random() < (score if informed else 0.5) * 0.4
            pairs.append(pair(score, "no" if wrong else "yes", "yes"))
        chosen = numbers(pairs, True, yes, None, 0.05)["threshold"]
        kept = 0.0 if chosen is None else min(max(chosen, 0.0), 1.0)
        broken += (0.2 * kept**2 if informed else 0.2 * kept) > 0.05
    assert broken / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_answers_may_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('\ufeff{"question": "1 + 1?", "answer": 2}\n', encoding="utf-8")
    assert read(tmp_path / "sums.jsonl") == [Question(1, "1 + 1?", ("2",))]
