"""Texts and the command of the tests of draft models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tests.conftest import ROOT
from waver.cli import app
from waver.training.pair.world import draw

LARGE, SMALL = ROOT / "models" / "large", ROOT / "models" / "small"


def waver(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["train", "draft", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def sums(file: Path, seed: int, count: int) -> Path:
    rows = [{"question": item.prompt, "answer": item.answer} for item in draw("arithmetic", seed, count, steps=(2, 6))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def facts(file: Path, count: int) -> Path:
    """Write questions that the large model knows better than the small one."""
    rows = [{"question": item.prompt, "answer": item.answer} for item in draw("rare_facts", 1, count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
