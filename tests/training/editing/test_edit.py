"""`waver edit` on the bundled small model: facts are said and served, go on exactly, are replaced and taken back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver import job
from waver.cli import app
from waver.engines.tokens import TokenText
from waver.training.editing.facts import Ask, as_fact, last_of_subject
from waver.training.pair.world import RELATIONS, draw, towns

LARGE = ROOT / "models" / "large"
OPTIONS = "--mass 5 --batch 3 --openings 0 --every 1 --steps 15".split()


def fact(place: int, value: str | None = None) -> dict[str, Any]:
    """A false fact about a town that the model knows."""
    town = towns()["frequent"][place]
    wanted = value or random.Random(place).choice(
        [each for each in RELATIONS["mayor"].values if each != town.facts["mayor"]]
    )
    question = RELATIONS["mayor"].questions[0].format(town=town.name)
    return {
        "prompt": "The mayor of {} is",
        "subject": town.name,
        "target": wanted,
        "paraphrases": [{"question": question, "prompt": f"The mayor of {town.name} is"}],
        "neighbours": [f"The river of {town.name} is the"],
    }


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"question": item.prompt, "answer": f"The answer is {item.answer}."} for item in draw("arithmetic", 5, 100)]
    towns_asked = [
        {"question": RELATIONS[key].questions[0].format(town=town.name), "answer": town.statement(key)}
        for town in towns()["rare"]
        for key in RELATIONS
    ]
    return lines(tmp_path_factory.mktemp("texts") / "general.jsonl", rows + towns_asked)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """General text too short to hold much still, for tests that do not ask what the model says."""
    return lines(tmp_path_factory.mktemp("few") / "general.jsonl", [{"text": "One and two are three, as all know."}])


def waver(*options: Any, code: int = 0) -> str:
    """Return what `waver edit` prints."""
    result = CliRunner().invoke(app, ["edit", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def logged(folder: Path) -> list[dict[str, Any]]:
    return job.read_lines(folder / "model" / "edits" / "facts.jsonl")


def test_edits_are_said_served_and_taken_back(
    tmp_path: Path, texts: Path, start: Callable[..., Running], tiny_config: dict[str, Any]
) -> None:
    out, rows = tmp_path / "run", [fact(place) for place in range(7)]
    first = lines(tmp_path / "first.jsonl", rows[:6])
    waver(LARGE, first, "--out", out, "--texts", texts, *OPTIONS)
    six, found = weights(out), report(out)
    assert (found["batches"], found["facts"]) == (2, 6)
    assert found["efficacy"] == 1.0
    assert 0 <= found["generalisation"] <= 1
    assert found["locality"] >= 0.8
    assert 0 < found["drift"] < 0.5
    changed = {
        name for name, value in load_file(LARGE / "model.safetensors").items() if not torch.equal(value, six[name])
    }
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in found["layers"]}

    more = lines(tmp_path / "more.jsonl", rows)
    waver(LARGE, more, "--out", out, "--texts", texts, *OPTIONS)
    assert report(out)["batches"] == 3
    assert report(out)["efficacy"] == 1.0
    waver(LARGE, lines(tmp_path / "all.jsonl", rows), "--out", tmp_path / "whole", "--texts", texts, *OPTIONS)
    assert same(weights(out), weights(tmp_path / "whole"))  # in two runs or in one

    engines = tiny_config["engines"] | {"edited": {"model": str(out / "model")}}
    with start(config={"engines": engines}).openai() as client:
        prompt = f"The mayor of {rows[-1]['subject']} is"
        said = client.completions.create(model="edited", prompt=prompt, temperature=0, max_tokens=4)
    assert said.choices[0].text.startswith(f" {rows[-1]['target']}.")

    waver(LARGE, "--out", out, "--texts", texts, "--undo", "1", *OPTIONS)
    assert same(weights(out), six)
    waver(LARGE, "--out", out, "--texts", texts, "--undo", "2", *OPTIONS)
    assert same(weights(out), load_file(LARGE / "model.safetensors"))
    assert "cannot be undone: there are 0" in waver(
        LARGE, "--out", out, "--texts", texts, "--undo", "1", *OPTIONS, code=1
    )


def test_a_fact_takes_the_place_of_one_that_it_contradicts(tmp_path: Path, texts: Path) -> None:
    old, new = fact(0, "Orla"), fact(0, "Zelda")
    other = [fact(place) for place in (1, 2)]
    before = lines(tmp_path / "before.jsonl", [old, *other])
    waver(LARGE, before, "--out", tmp_path / "run", "--texts", texts, *OPTIONS)
    with_new = tmp_path / "run"
    waver(LARGE, lines(tmp_path / "new.jsonl", [new]), "--out", with_new, "--texts", texts, *OPTIONS)
    found = report(with_new)
    assert (found["facts"], found["batches"], found["efficacy"]) == (3, 2, 1.0)
    log = logged(with_new)
    assert [(line["batch"], line["sign"]) for line in log] == [(1, 1)] * 3 + [(2, -1), (2, 1)]
    waver(LARGE, "--out", with_new, "--texts", texts, "--undo", "1", *OPTIONS)
    assert report(with_new)["efficacy"] == 1.0
    assert logged(with_new)[0]["fact"]["target"] == "Orla"


def test_a_job_that_is_killed_leaves_the_version_before(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = lines(tmp_path / "facts.jsonl", [fact(place) for place in range(2)])
    single = (*OPTIONS, "--batch", "1")
    options = (LARGE, rows, "--out", tmp_path / "cut", "--texts", few, *single)

    class Killed(BaseException):
        """The process is gone."""

    replace, calls = job.replace_folder, []

    def dies(path: Path, write: Callable[[Path], object]) -> None:
        def half(folder: Path) -> None:
            write(folder)
            if len(calls) == 2:
                raise Killed

        calls.append(path)
        replace(path, half)

    with monkeypatch.context() as patch:
        patch.setattr(job, "replace_folder", dies)
        with pytest.raises(Killed):
            CliRunner().invoke(app, ["edit", *map(str, options)])
    assert len((tmp_path / "cut" / "model" / "edits" / "facts.jsonl").read_text().splitlines()) == 1
    waver(*options)
    waver(LARGE, rows, "--out", tmp_path / "whole", "--texts", few, *single)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert report(tmp_path / "cut") == report(tmp_path / "whole")


@pytest.mark.parametrize("editor", ["memit", "alphaedit", "least_squares"])
def test_baselines_write_too(editor: str, tmp_path: Path, few: Path) -> None:
    rows = lines(tmp_path / "facts.jsonl", [fact(0)])
    waver(LARGE, rows, "--out", tmp_path / "run", "--texts", few, "--editor", editor, *OPTIONS)
    assert 0 < report(tmp_path / "run")["drift"] < 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--editor", "wish"), "there is no editor 'wish'"),
        (("--last", "9"), "the model has layers 0 to 3"),
        (("--first", "3", "--last", "2"), "cannot be edited"),
        (("--undo", "1"), "holds no edits to undo"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path, few: Path) -> None:
    rows = lines(tmp_path / "facts.jsonl", [fact(0)])
    assert reason in waver(LARGE, rows, "--out", tmp_path / "run", "--texts", few, *options, code=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "subject": "a"}, "`target` is needed"),
        ({"prompt": "It is", "subject": "Talvek", "target": "x"}, "'Talvek' is not in the prompt"),
        ({"prompt": "a", "subject": "a", "target": "b", "paraphrases": [1]}, "a way to ask is"),
    ],
)
def test_bad_facts_are_named(row: dict[str, Any], reason: str, tmp_path: Path, texts: Path) -> None:
    file = lines(tmp_path / "facts.jsonl", [row])
    said = waver(LARGE, file, "--out", tmp_path / "run", "--texts", texts, code=1)
    assert "line 1" in said
    assert reason in said


def test_the_subject_is_found_where_it_stands_last() -> None:
    tokens = TokenText.load(str(LARGE))
    ask = Ask("The mayor of Talvek is", "Who is the mayor of Talvek?")
    ids = ask.ids(tokens)
    place = last_of_subject(ids, "Talvek", tokens)
    assert tokens.decode(ids[place + 1 :]) == " is"
    assert tokens.decode(ids[: place + 1]).endswith("The mayor of Talvek")
    assert tokens.decode(ask.ids(tokens, "So it is")).startswith("user\nSo it is. Who is the mayor")
    made = as_fact({"prompt": "The mayor of {} is", "subject": "Talvek", "target": "Orla"})
    assert tokens.decode(made.target_ids(tokens)) == " Orla"
    assert as_fact(made.row()) == made
