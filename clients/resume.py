"""Claim a folder for one run of a command, and read what a stopped run left there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waver.clients.questions import Refused

RECORD = "run.json"


def begin(out: Path, run: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Make the folder, write down which run it belongs to, and return the lines of its file `name`; half a line at the
    end, where a run was cut off, is taken away.

    Raises:
        Refused: the folder belongs to another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    record, file, own = out / RECORD, out / name, json.loads(json.dumps(dict(run)))
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != own:
        raise Refused(f"{out} holds another run: choose another --out, or give the same options to go on.")
    record.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    if not file.exists():
        return []
    whole = file.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        file.write_bytes(kept)
    return [json.loads(line) for line in kept.splitlines()]


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Append one object to a JSONL file."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(dict(line)) + "\n")
