"""Claim a folder for one run of a command, and read what a stopped run left there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waver import job
from waver.clients.questions import Refused


def begin(out: Path, run: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Claim the folder and return the lines of its file `name`.

    Raises:
        Refused: the folder belongs to another run.
    """
    try:
        job.claim(out, run)
    except ValueError as error:
        raise Refused(f"{error}.") from None
    return job.read_lines(out / name)
