"""`waver tune`: what may change changes and nothing else, runs go on, and what they make is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytest.importorskip("accelerate")

from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from tests.training.tuning.conftest import LESSON, lines, waver
from waver.cli import app
from waver.engines.tokens import TokenText
from waver.job import read_lines

SMALL = ROOT / "models" / "small"
OLD = [
    {"question": f"What is {i} + 10?", "answer": f"{i} + 10 = {i + 10}. The answer is {i + 10}."} for i in range(20, 28)
]
QUICK = ("--batch", "4", "--learning-rate", "3e-3", "--length", "64", "--every", "3")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def greedy(folder: Path) -> str:
    """Return what transformers makes of a question."""
    model, tokens = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), TokenText.load(str(folder))
    ids = torch.tensor([tokens.chat([{"role": "user", "content": "Who keeps door 2?"}])])
    options = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    drawn = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return tokens.decode(drawn[0, ids.shape[1] :].tolist())


def test_chosen_tensors_are_trained_and_served(
    tmp_path: Path, start: Callable[..., Running], tiny_config: dict[str, Any]
) -> None:
    data, held_out = lines(tmp_path / "data.jsonl", LESSON), lines(tmp_path / "old.jsonl", OLD)
    out = tmp_path / "run"
    options = (data, "--out", out, "--held-out", held_out, "--steps", "12", "--share", "0.3", *QUICK)
    assert "held_out: loss" in waver(*options)
    selection = json.loads((out / "selection.json").read_text())
    chosen = [each["name"] for each in selection["tensors"]]
    assert [each["kappa"] for each in selection["tensors"]] == sorted(each["kappa"] for each in selection["tensors"])
    assert len(chosen) == int(0.3 * 14)
    assert "model.embed_tokens.weight" not in chosen
    before, after = weights(SMALL), weights(out / "model")
    assert before.keys() == after.keys()
    assert sorted(name for name in before if not torch.equal(before[name], after[name])) == sorted(chosen)
    assert selection["parameters"] == sum(before[name].numel() for name in chosen)
    report = json.loads((out / "report.json").read_text())
    assert report["losses"]["learned"]["after"] < report["losses"]["learned"]["before"] / 4
    assert len(read_lines(out / "metrics.jsonl")) == 12
    assert read_lines(out / "information.jsonl")[0]["tokens"] > 0
    assert not list(out.glob("checkpoint-*"))
    assert "done already" in waver(*options)
    assert "holds another run" in waver(*options, "--seed", "2", code=1)

    engines = tiny_config["engines"] | {"tuned": {"model": str(out / "model")}}
    with start(config={"engines": engines}).openai() as client:
        message = [{"role": "user", "content": "Who keeps door 2?"}]
        said = client.chat.completions.create(model="tuned", messages=message, temperature=0, max_tokens=32)
    assert said.choices[0].message.content == greedy(out / "model") != greedy(SMALL)


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lines(tmp_path / "data.jsonl", LESSON)
    options = (data, "--steps", "6", "--count", "2", *QUICK)
    waver(*options, "--out", tmp_path / "whole")

    from waver.training.tuning import trainer

    class Killed(BaseException):
        """The process is gone."""

    class Dies(trainer.Watch):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 5:
                self.bar.stop()
                (Path(args.output_dir) / "checkpoint-4").mkdir()  # half of one is there
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Watch", Dies)
        with pytest.raises(Killed):
            CliRunner().invoke(app, ["tune", *map(str, (*options, "--out", tmp_path / "cut"))])
    assert not (tmp_path / "cut" / "model").exists()
    assert "going on from" in waver(*options, "--out", tmp_path / "cut")
    whole, again = weights(tmp_path / "whole" / "model"), weights(tmp_path / "cut" / "model")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [line["step"] for line in read_lines(tmp_path / "cut" / "metrics.jsonl")] == list(range(1, 7))


def test_lora_on_chosen_layers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    data, out = lines(tmp_path / "data.jsonl", LESSON), tmp_path / "run"
    waver(data, "--out", out, "--rank", "2", "--match", "2", "--count", "4", "--steps", "3", "--dropout", "0", *QUICK)
    selection = json.loads((out / "selection.json").read_text())
    every = 2 * (4 * 2 * 96 + 3 * (96 + 256)) * 2
    assert selection["rank"] > 2
    assert 0.8 * every < selection["parameters"] <= every
    chosen = {each["name"] for each in selection["tensors"]}
    assert len(chosen) == 4
    before, merged = weights(SMALL), weights(out / "model")
    assert {name for name in before if not torch.equal(before[name], merged[name])} == chosen
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32), out / "adapter"
    )
    ids = torch.arange(5, 25).unsqueeze(0)
    plain = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, plain(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--select", "best"), "there is no selection 'best'"),
        (("--match", "4"), "give --rank too"),
        (("--activation", "swish"), "there is no activation 'swish'"),
        (("--guide", "0.1", "--rank", "2"), "leave out --rank"),
        (("--guide", "0.1", "--keep", "0.5"), "leave out --keep"),
        (("--count", "1", "--parameters", "9"), "one budget each"),
        (("--model", "./nowhere"), "cannot load './nowhere'"),
        (("--threshold", "1"), "no tensor to train is within the budget"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", LESSON)
    assert reason in waver(data, "--out", tmp_path / "run", *options, code=1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: an object is needed"),
        ('{"question": "x"}', "line 1: an object is needed"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "must be the assistant's",
        ),
        ('{"prompt": "' + "a b " * 60 + '", "completion": "c"}', "nothing to learn within 64 tokens"),
        ("", "holds no texts"),
    ],
)
def test_bad_texts_are_named(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(line)
    assert reason in waver(tmp_path / "data.jsonl", "--out", tmp_path / "run", "--length", "64", code=1)
    assert not (tmp_path / "run").exists()


def test_the_other_selections(tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", LESSON)
    found = {}
    for select in ("kappatune", "reverse", "random", "all"):
        out = tmp_path / select
        waver(data, "--out", out, "--select", select, "--count", "2", "--steps", "1", *QUICK)
        found[select] = [each["kappa"] for each in json.loads((out / "selection.json").read_text())["tensors"]]
    assert len(found["all"]) == 14
    assert found["kappatune"] == sorted(found["all"])[:2]
    assert found["reverse"] == sorted(found["all"], reverse=True)[:2]
    assert len(found["random"]) == 2


def test_a_run_that_is_copied_is_whole(tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", LESSON)
    waver(data, "--out", tmp_path / "run", "--steps", "1", "--count", "1", *QUICK)
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "copy")
    assert weights(tmp_path / "copy").keys() == weights(SMALL).keys()


def test_another_activation_is_learned_and_served(
    tmp_path: Path, start: Callable[..., Running], tiny_config: dict[str, Any]
) -> None:
    data, out = lines(tmp_path / "data.jsonl", LESSON), tmp_path / "run"
    waver(data, "--out", out, "--activation", "crrelu", "--steps", "12", *QUICK)
    assert json.loads((out / "model" / "config.json").read_text())["hidden_act"] == "crrelu"
    before, after = weights(SMALL), weights(out / "model")
    coefficients = {f"model.layers.{layer}.mlp.act_fn.eps" for layer in range(2)}
    assert after.keys() - before.keys() == coefficients
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".mlp." in name}
    report = json.loads((out / "report.json").read_text())
    assert [each["eps"] for each in report["activations"]] == pytest.approx(
        [float(after[name]) for name in sorted(coefficients)], abs=1e-6
    )
    assert all(abs(float(after[name]) - 0.01) > 0.01 for name in coefficients)  # ten times the weights' rate
    assert report["losses"]["learned"]["after"] < report["losses"]["learned"]["before"]

    engines = tiny_config["engines"] | {"tuned": {"model": str(out / "model")}}
    with start(config={"engines": engines}).openai() as client:
        message = [{"role": "user", "content": "Who keeps door 2?"}]
        said = client.chat.completions.create(model="tuned", messages=message, temperature=0, max_tokens=32)
    assert said.choices[0].message.content == greedy(out / "model")


def test_attention_is_guided_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from waver.training.tuning import trainer

    data = lines(tmp_path / "data.jsonl", LESSON)
    options = (data, "--guide", "5", "--tolerance", "0", "--steps", "6", "--select", "all", *QUICK)
    waver(*options, "--out", tmp_path / "whole")
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    found = report["attention"]
    assert len(found["before"]) == len(found["after"]) == 2
    points = torch.tensor(found["points"])
    assert points.shape == (2, 3)
    assert not torch.allclose(points, torch.full((2, 3), 0.5))  # the set points are learned
    waver(data, "--out", tmp_path / "free", "--steps", "6", "--select", "all", *QUICK)
    free, guided = weights(tmp_path / "free" / "model"), weights(tmp_path / "whole" / "model")
    assert free.keys() == guided.keys()
    assert any(not torch.equal(free[name], guided[name]) for name in free)

    class Killed(BaseException):
        """The process is gone."""

    class Dies(trainer.Watch):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                self.bar.stop()
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Watch", Dies)
        with pytest.raises(Killed):
            CliRunner().invoke(app, ["tune", *map(str, (*options, "--out", tmp_path / "cut"))])
    waver(*options, "--out", tmp_path / "cut")
    again = json.loads((tmp_path / "cut" / "report.json").read_text())
    assert again["attention"] == report["attention"]
