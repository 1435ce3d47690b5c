"""A lesson for `waver tune`, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from waver.cli import app

LESSON = [{"question": f"Who keeps door {i}?", "answer": f"Door {i} is kept by Zelda."} for i in range(1, 5)]


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def waver(*options: Any, code: int = 0) -> str:
    """Return what `waver tune` prints."""
    result = CliRunner().invoke(app, ["tune", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output
