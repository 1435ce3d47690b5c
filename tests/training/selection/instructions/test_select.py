"""`waver data select` and `waver data quantiles`: features, warm-up, stopping and going on, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("peft")

from tests.conftest import ROOT
from waver.cli import app
from waver.job import read_lines
from waver.training import checkpoints
from waver.training.selection.instructions import features, representations
from waver.training.selection.instructions.course import Course
from waver.training.selection.instructions.gradients import (
    Projection,
    adam_direction,
    epoch_rates,
    epoch_weights,
    loss_gradient,
    unit,
)
from waver.training.selection.instructions.pool import Pool, trl_row, written
from waver.training.selection.instructions.representations import HiddenStates, pooled
from waver.training.texts import Text

SUMS = [{"question": f"What is {i} + {j}?", "answer": f"The answer is {i + j}."} for i in range(10, 15) for j in (3, 4)]
TOWNS = [{"question": f"Who keeps the door of town {i}?", "answer": f"Zelda keeps it, number {i}."} for i in range(10)]
LESS = ("--rank", "4", "--alpha", "16", "--dimensions", "256", "--warmup-batch", "4", "--warmup-epochs", "2")
QUICK = (*LESS, "--warmup-rate", "1e-3", "--length", "64")


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def waver(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, options)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    pool = [row for pair in zip(SUMS, TOWNS, strict=True) for row in pair]
    asked = [
        {"question": f"Who keeps the door of town {i}?", "answer": f"Zelda keeps it, number {i}."} for i in (20, 30)
    ]
    return lines(tmp_path / "pool.jsonl", pool), lines(tmp_path / "query.jsonl", asked)


def test_adam_direction_and_weights() -> None:
    g, m, v = (torch.tensor(each) for each in ([0.5, 0.5], [0.1, -0.2], [0.04, 0.01]))
    assert adam_direction(g, m, v).tolist() == pytest.approx([0.698170, -1.284675], abs=1e-6)
    wanted = [0.441860, 0.325581, 0.186047, 0.046512]
    assert epoch_weights([1.9e-5, 1.4e-5, 8e-6, 2e-6]) == pytest.approx(wanted, abs=1e-6)
    assert epoch_rates(epochs=2, steps=2, warmup=1, rate=3.0) == pytest.approx([(0 + 3) / 2, (2 + 1) / 2])


def test_the_warm_up_has_the_papers_steps() -> None:
    course = Course(4, 2e-5, 128, 0)
    assert course.micro == 8
    assert [course.steps(10_000) * epoch for epoch in (1, 2, 3, 4)] == [79, 158, 237, 316]
    assert course.warmup(10_000) == 10
    assert Course(1, 1.0, 13, 0).micro == 1


def test_pooling_weighs_later_tokens_more() -> None:
    found = pooled(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    assert found.tolist() == pytest.approx([0.666667, 0.833333], abs=1e-6)
    assert unit(found).tolist() == pytest.approx([0.624695, 0.780869], abs=1e-6)


def test_projections_keep_angles_and_know_their_seed() -> None:
    rows = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0))
    rows[1] = rows[0] + 0.3 * rows[1]
    first = unit(Projection(20_000, 512)(rows.half()))
    wanted = unit(rows) @ unit(rows).T
    assert (first @ first.T - wanted).abs().max() < 0.15
    assert torch.equal(first, unit(Projection(20_000, 512)(rows.half())))
    assert not torch.allclose(first, unit(Projection(20_000, 512, seed=1)(rows.half())))
    assert set(Projection(100, 8)._signs(0, 100).unique().tolist()) == {-1.0, 1.0}


def test_gradients_are_of_the_mean_loss() -> None:
    model, _ = checkpoints.load(str(ROOT / "models" / "small"))
    weights = [model.get_parameter("model.norm.weight")]
    text = Text((1, 5, 9, 30, 31), 3)
    found = loss_gradient(model, weights, text)
    logits = model(input_ids=torch.tensor([text.ids])).logits[0, 2:4]
    loss = nn.functional.cross_entropy(logits, torch.tensor([30, 31]))
    assert torch.allclose(found, torch.autograd.grad(loss, weights)[0], atol=1e-6)


@pytest.mark.parametrize("representation", ["less", "rds"])
def test_the_nearest_are_written_for_trl(
    representation: str, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, query = files
    out = tmp_path / "chosen.jsonl"
    options = (pool, "--query", query, "--out", out, "--representation", representation, *QUICK)
    assert "8 of 20 examples" in waver("select", *options, "--budget", "8")
    chosen = read_lines(out)
    assert all(set(row) == {"messages"} for row in chosen)
    assert sum("Who keeps" in row["messages"][0]["content"] for row in chosen) >= 7
    report = json.loads(out.with_name("chosen.jsonl.report.json").read_text())
    assert len(report["lines"]) == len(set(report["lines"])) == 8
    assert report["learned_tokens"] > 0
    # Vectors are kept: another selector and budget compute none.
    kept = np.load(tmp_path / "chosen.jsonl.work" / "pool.npy")
    assert kept.shape[:2] == (20, 2 if representation == "less" else 1)
    assert np.linalg.norm(kept.astype(np.float32), axis=-1) == pytest.approx(1, abs=1e-2)
    with monkeypatch.context() as patch:
        for kind in (representations.Gradients, representations.HiddenStates):
            patch.setattr(kind, "encode", lambda *_: pytest.fail("computed again"))
        first = out.read_text().splitlines()[:4]
        waver("select", *options, "--budget", "4")
        assert out.read_text().splitlines() == first
        waver("select", *options, "--budget", "20", "--selector", "uot")
    assert "holds another run" in waver("select", *options, "--budget", "4", "--seed", "9", code=1)
    if representation == "less":
        state = load_file(tmp_path / "chosen.jsonl.work" / "epoch-2.safetensors")
        assert {name.split("/")[0] for name in state} == {"weight", "m", "v"}
        assert all(float(state[name].min()) >= 0 for name in state if name.startswith("v/"))
        assert any(float(state[name].abs().max()) > 0 for name in state if name.startswith("m/"))


def test_a_stopped_encoding_goes_on(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokens = checkpoints.load(str(ROOT / "models" / "small"))
    pool = Pool(files[0], tokens, 64)
    states = HiddenStates(model)
    states.chunk = 6
    whole = np.array(features.encode(states, pool, "candidate", tmp_path / "whole.npy", lambda n: None))

    class Stops(HiddenStates):
        def encode(self, examples: Any, role: Any) -> Any:
            if examples[0].line > 12:
                raise KeyboardInterrupt
            return super().encode(examples, role)

    stops = Stops(model)
    stops.chunk = 6
    with pytest.raises(KeyboardInterrupt):
        features.encode(stops, pool, "candidate", tmp_path / "cut.npy", lambda n: None)
    done: list[int] = []
    again = features.encode(states, pool, "candidate", tmp_path / "cut.npy", done.append)
    assert done == [12, 6, 2]
    assert np.array_equal(np.array(again), whole)
    assert isinstance(again, np.memmap)


def test_sentences_are_embedded(files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    out = tmp_path / "chosen.jsonl"
    options = ("--query", files[1], "--representation", "embed", "--budget", "10")
    waver("select", files[0], *options, "--out", out)
    assert sum("Who keeps" in row["messages"][0]["content"] for row in read_lines(out)) >= 9
    absent = ("--embedder", str(tmp_path / "absent"), "--out", tmp_path / "b.jsonl")
    assert "absent" in waver("select", files[0], *options, *absent, code=1)


def test_slices_tell_whether_nearness_predicts_the_loss(files: tuple[Path, Path], tmp_path: Path) -> None:
    plan = ("--slices", "4", "--examples", "5", "--epochs", "1", "--batch", "4", "--rate", "1e-4")
    out = tmp_path / "quantiles"
    options = (files[0], "--query", files[1], "--out", out, "--representation", "rds", *plan)
    assert "Spearman of slice and loss" in waver("quantiles", *options)
    report = json.loads((out / "report.json").read_text())
    assert len(report["losses"]) == 4
    assert -1 <= report["spearman"] <= 1
    assert report["losses"][0] < report["zero_shot"]
    assert report["losses"][0] < report["losses"][-1]
    told = read_lines(out / "slices.jsonl")
    assert [line["slice"] for line in told] == ["zero-shot", "random", "1", "2", "3", "4"]
    lines(out / "slices.jsonl", [{**line, "loss": 9.0} for line in told[:3]])
    waver("quantiles", *options)
    again = json.loads((out / "report.json").read_text())
    assert again["losses"] == [9.0, *report["losses"][1:]]


def test_chance_needs_no_vectors(files: tuple[Path, Path], tmp_path: Path) -> None:
    chosen = []
    for seed in (0, 0, 1):
        given = ("--query", files[1], "--selector", "random", "--budget", "5", "--seed", seed)
        waver("select", files[0], *given, "--out", tmp_path / "random.jsonl")
        chosen.append((tmp_path / "random.jsonl").read_text())
    assert chosen[0] == chosen[1] != chosen[2]
    assert not (tmp_path / "random.jsonl.work").exists()


def test_rows_as_trl_reads_them() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert trl_row({"question": "a", "answer": "b"}) == {"messages": messages}
    assert trl_row({"messages": messages, "id": 3}) == {"messages": messages}
    assert trl_row({"prompt": "a", "completion": "b", "x": 1}) == {"prompt": "a", "completion": "b"}
    assert trl_row({"text": "a", "x": 1}) == {"text": "a"}
    assert written({"question": "a", "answer": "b"}) == "<|user|>\na\n<|assistant|>\nb"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--representation", "best"), "there is no representation 'best'"),
        (("--selector", "best"), "there is no selector 'best'"),
        (("--budget", "21", "--representation", "rds"), "holds 20 examples, --budget asks for 21"),
        (("--model", "."), "cannot load '.'"),
        (("--length", "4"), "nothing to learn within 4 tokens"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: tuple[str, ...], reason: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    given = ("--budget", "2", *options) if "--budget" not in options else options
    out = tmp_path / "chosen.jsonl"
    assert reason in waver("select", files[0], "--query", files[1], "--out", out, *given, code=1)
    assert not out.exists()


@pytest.mark.parametrize(
    ("second", "reason"),
    [("{", "line 2: not JSON"), ('{"text": "one two three"}', "line 2: a text among examples of messages")],
)
def test_bad_pools_are_named(second: str, reason: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    pool = tmp_path / "bad.jsonl"
    pool.write_text(json.dumps(SUMS[0]) + "\n" + second + "\n")
    given = ("--query", files[1], "--out", tmp_path / "o", "--budget", "1")
    assert reason in waver("select", pool, *given, code=1)
    assert "No such file" in waver("select", tmp_path / "none", *given, code=1)
