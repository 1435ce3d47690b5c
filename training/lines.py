"""Read files with a JSON value in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the values of a JSONL file's lines that are not blank, each with its place for messages.

    Raises:
        ValueError: a line is no JSON; the message names it.
        OSError: the file cannot be read.
    """
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise ValueError(f"{where}: not JSON") from None
        yield where, row
