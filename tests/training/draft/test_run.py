"""`waver train draft`: the draft is accepted more, goes on after a stop, is exact, and is loaded as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("accelerate")

from typer.testing import CliRunner

from tests.conftest import Running
from tests.training.draft.drafting import LARGE, SMALL, facts, sums, waver
from waver.cli import app
from waver.engines import VllmConfig
from waver.job import read_lines
from waver.training import checkpoints
from waver.training.draft.acceptance import measure
from waver.training.texts import read_texts


def test_a_model_accepts_all_of_itself(tmp_path: Path) -> None:
    model, tokens = checkpoints.load(str(SMALL))
    texts = read_texts(sums(tmp_path / "texts.jsonl", 1, 6), tokens, 128)
    found = measure(model, model, texts, 3, batch=4)
    assert found.sampled == pytest.approx(1, abs=1e-5)
    assert found.accepted == pytest.approx(3, abs=1e-4)
    assert found.greedy < 1
    assert found.greedy_line.slope < 0 == pytest.approx(found.sampled_line.slope, abs=1e-5)
    assert found.target_entropy == found.draft_entropy
    assert found.positions == sum(text.learned for text in texts)
    cold = measure(model, model, texts, 3, temperature=0.05, batch=4)
    assert cold.greedy > found.greedy


def test_drafts_are_accepted_more_and_served(
    tmp_path: Path, start: Callable[..., Running], tiny_config: dict[str, Any]
) -> None:
    data, out = facts(tmp_path / "data.jsonl", 16), tmp_path / "run"
    options = ("--temperature", 1.5, "--learning-rate", 1e-3, "--every", 5, "--steps", 12)
    said = waver(data, "--out", out, *options)
    report = json.loads((out / "report.json").read_text())
    before, after = report["before"], report["after"]
    assert after["accepted"] > before["accepted"] + 0.02
    assert after["sampled"] > before["sampled"]
    assert after["target_entropy"] == before["target_entropy"]
    assert "of sampled drafts accepted" in said
    assert len(read_lines(out / "metrics.jsonl")) == 12
    assert "done already" in waver(data, "--out", out, *options)
    assert "holds another run" in waver(data, "--out", out, *options, "--loss", "tv", code=1)

    target, tokens = checkpoints.load(str(LARGE))
    draft, _ = checkpoints.load(str(out / "model"))
    again = measure(target, draft, read_texts(data, tokens, 1024), 3, 1.5)
    assert again.sampled == pytest.approx(after["sampled"], abs=1e-5), "the checkpoint is what was measured"
    engine = yaml.safe_load((out / "engine.yaml").read_text())["engines"]["large"]
    speculation = VllmConfig.model_validate(engine).args["speculative_config"]
    assert speculation["draft_sample_method"] == "probabilistic", "vLLM's default drafts greedily"
    assert speculation["num_speculative_tokens"] == 3
    assert Path(speculation["model"]).samefile(out / "model")
    engines = tiny_config["engines"] | {"draft": {"model": str(out / "model")}}
    with start(config={"engines": engines}).openai() as client:
        message: Any = [{"role": "user", "content": "What is 12 + 3?"}]
        told = client.chat.completions.create(model="draft", messages=message, temperature=0, max_tokens=8)
    assert told.usage is not None
    assert told.usage.completion_tokens > 0


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sums(tmp_path / "data.jsonl", 1, 8)
    options = (data, "--batch", 2, "--every", 1, "--learning-rate", 1e-3, "--loss", "tv")
    waver(*options, "--out", tmp_path / "whole")

    from waver.training.tuning import trainer

    class Killed(BaseException):
        """The process is gone."""

    class Dies(trainer.Watch):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 3:
                self.bar.stop()
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Watch", Dies)
        with pytest.raises(Killed):
            CliRunner().invoke(app, ["train", "draft", *map(str, (*options, "--out", tmp_path / "cut"))])
    assert not (tmp_path / "cut" / "model").exists()
    assert "going on from" in waver(*options, "--out", tmp_path / "cut")
    whole, cut = (checkpoints.load(str(tmp_path / name / "model"))[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut")]
    assert reports[0]["before"] == reports[1]["before"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--loss", "best"), "there is no loss 'best'"),
        (("--draft", "/nowhere/none"), "cannot load '/nowhere/none'"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    data = sums(tmp_path / "data.jsonl", 1, 2)
    assert reason in waver(data, "--out", tmp_path / "run", *options, code=1)
    assert not (tmp_path / "run").exists()
