"""Entropy-SFT: reference figures, what is kept, and the entropy that is left in a small world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

pytest.importorskip("accelerate")

from transformers import AutoModelForCausalLM

from tests.conftest import ROOT
from waver.cli import app
from waver.entropy import shannon_entropy
from waver.job import read_lines
from waver.training.tuning.entropy_sft import chosen, loss

P = [[0.9, 0.05, 0.05], [0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.34, 0.33, 0.33], [0.98, 0.01, 0.01]]
LOGITS, LABELS = torch.tensor(P, dtype=torch.float64).log(), torch.tensor([0, 0, 0, 1, 0])


def test_the_figures() -> None:
    ce, entropy = cross_entropy(LOGITS, LABELS, reduction="none"), shannon_entropy(LOGITS)
    assert ce.tolist() == pytest.approx([0.105361, 0.693147, 2.302585, 1.108663, 0.020203], abs=6e-7)
    assert entropy.tolist() == pytest.approx([0.394398, 1.039721, 0.639032, 1.098513, 0.111902], abs=6e-7)
    delta = (ce - 0.8 * entropy).tolist()
    assert delta == pytest.approx([-0.210158, -0.138629, 1.791360, 0.229853, -0.069319], abs=6e-7)
    assert sorted(chosen(ce, entropy).tolist()) == [1, 2, 3, 4]
    assert sorted(chosen(ce, entropy, 0.4).tolist()) == [2, 3]
    assert float(loss(LOGITS, LABELS)) == pytest.approx(1.0311494, abs=6e-8)
    assert float(loss(LOGITS, LABELS, 1.0)) == pytest.approx(0.8459916, abs=6e-8)
    assert float(loss(LOGITS, LABELS, 0.4)) == pytest.approx(1.7056239, abs=6e-8)
    assert float(loss(LOGITS, LABELS, total=10)) == pytest.approx(0.5155747, abs=6e-8)


def test_one_token_at_least_and_none_of_none() -> None:
    assert float(loss(LOGITS, LABELS, 0.01)) == pytest.approx(2.302585, abs=6e-7)
    nothing = LOGITS[:0].requires_grad_()
    assert loss(nothing, LABELS[:0]).item() == 0


def test_the_choice_has_no_gradient() -> None:
    """Tokens left out get none; those that are kept get that of their cross-entropy alone."""
    logits = LOGITS.clone().requires_grad_()
    loss(logits, LABELS).backward()
    assert logits.grad is not None
    expected = (torch.tensor(P) - torch.nn.functional.one_hot(LABELS, 3)) / 4
    expected[0] = 0
    assert torch.allclose(logits.grad.float(), expected, atol=1e-6)


def small_world(share: float, weight: float, seed: int, random: bool = False) -> tuple[float, float]:
    """Return entropy and accuracy after tuning a table of 200 contexts and 30 tokens: half of the contexts have one
    right token, the others three, equally likely."""
    g = torch.Generator().manual_seed(seed)
    table = torch.nn.Parameter(torch.randn(200, 16, generator=g) @ (0.4 * torch.randn(16, 30, generator=g)))
    right = torch.stack([torch.randperm(30, generator=g)[:3] for _ in range(200)])
    right[::2] = right[::2, :1]
    contexts = torch.randint(200, (2000,), generator=g)
    labels = right[contexts, torch.randint(3, (2000,), generator=g)]
    optimizer = torch.optim.Adam([table], lr=0.05)
    for _ in range(300):
        drawn = torch.randint(2000, (256,), generator=g)
        logits, answers = table[contexts[drawn]], labels[drawn]
        if random:
            some = torch.randperm(256, generator=g)[: int(share * 256)]
            found = cross_entropy(logits[some], answers[some])
        else:
            found = loss(logits, answers, share, weight)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    certain = table.detach()[::2].argmax(1) == right[::2, 0]
    return shannon_entropy(table.detach()).mean().item(), float(certain.float().mean())


def test_entropy_is_left_in_a_small_world() -> None:
    """Reference runs: .681 nats after tuning on all tokens, .698 on 80 % at random, 1.080 with the rule; accuracy 1."""
    rule, plain, at_random = (small_world(0.8, 0.8, 0), small_world(1.0, 0.8, 0), small_world(0.8, 0.8, 0, random=True))
    assert rule[0] > plain[0] + 0.2
    assert rule[0] > at_random[0] + 0.2
    assert min(rule[1], plain[1], at_random[1]) >= 0.99


def test_a_model_is_tuned_by_it(tmp_path: Path) -> None:
    rows = [{"question": f"Who keeps door {i}?", "answer": f"Door {i} is kept by Zelda."} for i in range(1, 5)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = ("--select", "all", "--steps", "4", "--batch", "4", "--length", "64", "--learning-rate", "3e-3")
    logged = {}
    for keep in ("1", "0.8"):
        out = tmp_path / keep
        made = CliRunner().invoke(app, ["tune", str(data), "--out", str(out), "--keep", keep, *steps])
        assert made.exit_code == 0, made.output
        logged[keep] = [line["loss"] for line in read_lines(out / "metrics.jsonl")]
        report = json.loads((out / "report.json").read_text())["losses"]["learned"]
        assert report["after"] < report["before"]
        assert AutoModelForCausalLM.from_pretrained(out / "model").num_parameters() > 0
    assert logged["0.8"][0] > logged["1"][0]  # of the same texts, the harder tokens
    assert not list((tmp_path / "0.8").glob("checkpoint-*"))
    assert (ROOT / "models" / "small").is_dir()
