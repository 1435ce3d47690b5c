"""A method is one file: it is found, listed, loaded and trained with, without another edit."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from waver.cli import app
from waver.engines import plugins
from waver.training.rl import RecipeError, load, make_recipe, methods, names
from waver.training.rl.registry import describe, listing, plugged
from waver.training.rl.toy import train

TOY = '''
"""Toy: halve the advantages."""

from pydantic import Field

from waver.training.rl import Batch, Method, Strict


class Parameters(Strict):
    factor: float = Field(0.5, ge=0)


def method(p: Parameters) -> Method:
    def transform(batch: Batch):
        return batch.advantage * p.factor

    return Method(name="toy_halves", paper="none", summary="halves the advantages", advantage_transform=transform)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A method beside those of Waver: one file in a folder of its own."""
    (tmp_path / "toy_halves.py").write_text(TOY)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    return "toy_halves"


def test_a_method_is_one_file(toy: str) -> None:
    assert toy in names()
    listed = CliRunner().invoke(app, ["train", "rl", "--list"])
    assert listed.exit_code == 0, listed.output
    assert "toy_halves (none)\n  halves the advantages\n  settings: factor=0.5" in listed.output
    plain, same, halved = (
        train(make_recipe("grpo", given), 0, steps=2).steps
        for given in ([], [{"name": toy, "factor": 1.0}], [{"name": toy, "factor": 0.0}])
    )
    assert same == plain
    assert halved[-1]["tokens_updated"] == 0 < plain[-1]["tokens_updated"]


@pytest.mark.parametrize("name", names())
def test_every_method_says_what_it_is(name: str) -> None:
    first, summary, settings = describe(name).splitlines()
    assert first.startswith(f"{name} (arXiv ")
    assert summary.strip()
    assert settings.startswith("  settings: ")


def test_a_method_of_a_package_is_listed_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_lab").mkdir()
    (tmp_path / "toy_lab" / "halves.py").write_text(TOY)
    (tmp_path / "toy_lab" / "nothing.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, '["toy_lab.halves", "toy_lab.nothing"]')
    assert plugged() == ("toy_lab.halves",)
    assert "toy_lab.halves (none)\n  halves the advantages" in listing()
    assert "toy_lab.nothing" not in listing()
    with pytest.raises(RecipeError, match=r"toy_lab\.nothing is no method: it needs a class Parameters"):
        load("toy_lab.nothing")
    monkeypatch.setenv(plugins.VARIABLE, '["toy_lab.missing"]')
    refused = CliRunner().invoke(app, ["train", "rl", "--list"])
    assert refused.exit_code == 2
    assert "toy_lab.missing" in refused.output
