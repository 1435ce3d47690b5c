"""`waver compress` end to end: a small trained model loses what it bears, goes on after a stop, and is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.conftest import ROOT, Running
from waver.cli import app
from waver.training.compression import run as work

SMALL = ROOT / "models" / "small"
QUICK = ["--generations", "3", "--offspring", "4", "--length", "64"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"question": f"What is {a} + {b}?", "answer": f"It is {a + b}."} for a in (3, 14, 27) for b in (5, 16, 48)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def invoke(model: Path, texts: Path, out: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["compress", str(model), "--data", str(texts), "--out", str(out), *QUICK, *more])


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_blocks_are_removed_and_the_rest_is_served(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[..., Running]
) -> None:
    out = tmp_path / "draft"
    done = invoke(SMALL, texts, out, "--target", "0.5", "--whole-blocks")
    assert done.exit_code == 0, done.output
    report, before = read(out / "report.json"), read(SMALL / "config.json")
    gone = report["levels"]["blocks"]
    assert len(gone) == before["num_hidden_layers"] // 2
    assert report["levels"] == {"blocks": gone, "attention": [], "mlp": []} == read(out / "levels.json")
    assert read(out / "model" / "config.json")["num_hidden_layers"] == before["num_hidden_layers"] - len(gone)
    assert report["parameters"] < report["parameters_before"]
    assert report["divergence"] > 0
    assert report["divergence"] <= report["by_cosine"] + 1e-6

    stopped = tmp_path / "stopped"
    write, calls = work._write, iter(range(1))

    def dies(file: Path, content: Any) -> None:
        if file.name == "search.json" and next(calls, None) is None:
            raise KeyboardInterrupt
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(work, "_write", dies)
        assert invoke(SMALL, texts, stopped, "--target", "0.5", "--whole-blocks").exit_code == 130
    assert read(stopped / "search.json")["generation"] == 1
    assert invoke(SMALL, texts, stopped, "--target", "0.5", "--whole-blocks").exit_code == 0
    assert read(stopped / "report.json") == report
    assert "done already" in invoke(SMALL, texts, stopped, "--target", "0.5", "--whole-blocks").output
    assert "holds another run" in invoke(SMALL, texts, stopped).output.replace("\n", " ")

    engines = {"draft": {"model": str(out / "model")}}
    running = start(config={"engines": engines, "presets": {}, "default_preset": None})
    with running.openai() as client:
        made = client.chat.completions.create(
            model="draft", max_tokens=4, messages=[{"role": "user", "content": "What is 3 + 5?"}]
        )
    assert made.usage is not None
    assert made.usage.completion_tokens > 0


def test_single_halves_become_zero(texts: Path, tmp_path: Path) -> None:
    done = invoke(SMALL, texts, tmp_path / "run", "--target", "0.5")
    assert done.exit_code == 0, done.output
    told = read(tmp_path / "run" / "levels.json")
    count = read(SMALL / "config.json")["num_hidden_layers"]
    assert len(told["blocks"]) + len(told["attention"]) == len(told["blocks"]) + len(told["mlp"]) == count // 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    zeros = sum(bool((layer.self_attn.o_proj.weight == 0).all()) for layer in model.model.layers)
    assert zeros == len(told["attention"])


def test_weights_are_pruned_within_the_budget(texts: Path, tmp_path: Path) -> None:
    done = invoke(SMALL, texts, tmp_path / "run", "--kind", "sparsity", "--target", "0.6", "--levels", "2")
    assert done.exit_code == 0, done.output
    report = read(tmp_path / "run" / "report.json")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    layers = [(n, p) for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    share = sum(int((p == 0).sum()) for _, p in layers) / sum(p.numel() for _, p in layers)
    assert share == pytest.approx(0.6, abs=0.002)
    assert len(set(report["levels"].values())) > 1, "some layers more than others"
    assert report["uniform"] > 0
    assert not (tmp_path / "run" / "levels").exists()


def test_weights_are_rounded_within_the_budget(texts: Path, tmp_path: Path) -> None:
    done = invoke(SMALL, texts, tmp_path / "run", "--kind", "bits", "--target", "3")
    assert done.exit_code == 0, done.output
    report = read(tmp_path / "run" / "report.json")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    sizes = {n: p.numel() for n, p in model.named_parameters() if n.endswith("_proj.weight")}
    bits = report["levels"]
    assert len(bits) == len(sizes)
    spent = sum(width * sizes[f"model.layers.{name}.weight"] for name, width in bits.items())
    assert spent == 3 * sum(sizes.values())
    assert set(bits.values()) <= {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kind", "width"], "--kind is one of depth, sparsity, bits"),
        (["--target", "1.5"], "--target 1.5 is not between 0 and 1"),
        (["--kind", "bits", "--target", "7"], "--target 7.0 is not between 2 and 6"),
        (["--target", "0.01"], "removes 0, which makes no model"),
    ],
)
def test_what_is_refused(options: list[str], words: str, texts: Path, tmp_path: Path) -> None:
    done = invoke(SMALL, texts, tmp_path / "run", *options)
    assert done.exit_code == 1
    assert words in done.output.replace("\n", " ")
    assert not (tmp_path / "run" / "model").exists()
