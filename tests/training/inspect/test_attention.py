"""`waver inspect attention`: a picture and numbers of a real model's heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.conftest import ROOT
from waver.cli import app
from waver.engines.tokens import TokenText
from waver.entropy.attention import head_fractions
from waver.training.inspect.attention import summary

TEXT = "The mayor of Talvek is Orla. The river of Talvek is the Sorn."


def test_every_head_of_a_model_is_shown(tmp_path: Path) -> None:
    model, out = ROOT / "models" / "large", tmp_path / "new" / "heads.png"
    result = CliRunner().invoke(app, ["inspect", "attention", str(model), "--text", TEXT, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 5_000
    found = torch.tensor(json.loads(out.with_suffix(".json").read_text())["heads"])
    loaded = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    ids = torch.tensor([TokenText.load(str(model)).encode(TEXT)])
    with torch.no_grad():
        attentions = loaded(ids, output_attentions=True).attentions
    wanted = torch.stack([head_fractions(each) for each in attentions])
    assert found.shape == (4, 6)
    assert torch.allclose(found, wanted, atol=1e-3)
    assert result.output.count("layer") == 4


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    for options, reason in (
        ((str(ROOT / "docs"), "--text", "a b"), "cannot load"),
        ((str(ROOT / "models" / "small"), "--text", "a"), "two tokens at least"),
        ((str(ROOT / "models" / "small"),), "Give the text"),
    ):
        result = CliRunner().invoke(app, ["inspect", "attention", *options, "--out", str(tmp_path / "x.png")])
        assert result.exit_code == 1
        assert reason in result.output
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [([0.05, 0.5], "at single places: 0"), ([0.5, 0.95], "everywhere alike: 1"), ([0.5, 0.5], "mean 0.50")],
)
def test_heads_that_stand_out_are_named(row: list[float], said: str) -> None:
    assert said in summary(torch.tensor([row]))[0]
