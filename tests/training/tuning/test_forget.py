"""`waver forget`: texts are forgotten, what else the model knows is not, runs go on, and the model is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("accelerate")

from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.cli import app
from waver.job import read_lines
from waver.training.pair.world import RELATIONS, towns
from waver.training.tuning import trainer

LARGE = ROOT / "models" / "large"
QUICK = ("--learning-rate", "3e-4", "--batch", "4", "--length", "64", "--check", "2", "--steps", "60", "--top", "32")


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def facts(kind: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": RELATIONS["mayor"].questions[0].format(town=town.name), "answer": town.statement("mayor")}
        for town in towns()[kind][first : first + count]
    ]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    other = [
        {"question": RELATIONS["river"].questions[0].format(town=town.name), "answer": town.statement("river")}
        for town in towns()["frequent"][8:]
    ]
    return {
        "texts": lines(tmp_path / "texts.jsonl", facts("frequent", 8)),
        "held_out": lines(tmp_path / "held-out.jsonl", other),
        "unseen": lines(tmp_path / "unseen.jsonl", facts("tail", 8)),
    }


def waver(*options: Any, code: int = 0) -> str:
    """Return what `waver forget` prints."""
    result = CliRunner().invoke(app, ["forget", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def test_texts_are_forgotten_and_the_rest_is_served(
    tmp_path: Path, files: dict[str, Path], start: Callable[..., Running], tiny_config: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    measured = ("--held-out", files["held_out"], "--unseen", files["unseen"], "--relearn", "4")
    waver(LARGE, files["texts"], "--out", out, *measured, *QUICK)
    report = json.loads((out / "report.json").read_text())
    before, after = report["before"], report["after"]
    assert before["membership"] > 0.85
    assert after["demoted"] <= 0.1 < 0.9 < before["demoted"]  # the towns' and the mayors' names
    assert after["membership"] < before["membership"]
    assert after["held_out_loss"] < before["held_out_loss"] + 1.0
    assert set(report["relearned"]) == {"trained", "others"}
    demoted = [json.loads(line)["demoted"] for line in (out / "demoted.jsonl").read_text().splitlines()]
    assert len(demoted) == 8
    steps = read_lines(out / "metrics.jsonl")
    assert [line["stop"] for line in steps if "stop" in line][-1]
    assert steps[-1]["step"] < 60  # it stopped by itself
    assert "done already" in waver(LARGE, files["texts"], "--out", out, *measured, *QUICK)

    engines = tiny_config["engines"] | {"clean": {"model": str(out / "model")}}
    with start(config={"engines": engines}).openai() as client:
        asked = facts("frequent", 1)[0]
        message = [{"role": "user", "content": asked["question"]}]
        said = client.chat.completions.create(model="clean", messages=message, temperature=0, max_tokens=32)
    assert said.choices[0].message.content != asked["answer"]


def test_a_killed_run_goes_on_to_the_same_weights(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (LARGE, files["texts"], *QUICK[:-4], "--steps", "6", "--every", "3", "--stop", "0")
    waver(*options, "--out", tmp_path / "whole")

    class Killed(BaseException):
        """The process is gone."""

    class Dies(trainer.Watch):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 5:
                self.bar.stop()
                raise Killed
            super().on_step_end(args, state, control, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Watch", Dies)
        with pytest.raises(Killed):
            CliRunner().invoke(app, ["forget", *map(str, (*options, "--out", tmp_path / "cut"))])
    assert not (tmp_path / "cut" / "model").exists()
    assert "going on from" in waver(*options, "--out", tmp_path / "cut")
    whole, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("method", ["npo", "ascent"])
def test_baselines_forget_too(method: str, tmp_path: Path, files: dict[str, Path]) -> None:
    out = tmp_path / "run"
    waver(LARGE, files["texts"], "--out", out, "--method", method, *QUICK)
    report = json.loads((out / "report.json").read_text())
    assert report["after"]["demoted"] < report["before"]["demoted"] / 2


def test_what_cannot_be_done_is_said(tmp_path: Path, files: dict[str, Path]) -> None:
    out = tmp_path / "run"
    assert "there is no method 'magic'" in waver(LARGE, files["texts"], "--out", out, "--method", "magic", code=1)
    assert "cannot load" in waver(tmp_path, files["texts"], "--out", out, code=1)
    assert "No such file" in waver(LARGE, tmp_path / "none.jsonl", "--out", out, code=1)
    assert not out.exists()
    assert "no token is to be demoted" in waver(LARGE, files["texts"], "--out", out, "--share", "0", code=1)
    assert not (out / "model").exists()


def test_a_reference_ranks_what_a_model_knows_by_heart(tmp_path: Path, files: dict[str, Path]) -> None:
    out, reference = tmp_path / "run", ROOT / "models" / "small"
    options = (LARGE, lines(tmp_path / "rare.jsonl", facts("rare", 4)), *QUICK[:-4], "--steps", "1", "--share", "20")
    waver(*options, "--out", out, "--reference", reference)
    rows = [json.loads(line) for line in (out / "demoted.jsonl").read_text().splitlines()]
    # Both know the sentence; the towns' names and their mayors are what the small model finds least likely.
    values = [town.facts["mayor"] for town in towns()["rare"][:4]]
    assert all(f" {value}" in row["demoted"] for row, value in zip(rows, values, strict=True))
    assert all(len(row["demoted"]) == 2 for row in rows)
