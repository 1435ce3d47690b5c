"""Claim a folder for one run, and find in it what a stopped run had done.

A run that is started again in the same folder with the same options goes on; one with other options is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RECORD = "run.json"


def claim(folder: Path, run: Mapping[str, Any]) -> None:
    """Make the folder and write down there which run it belongs to.

    Args:
        run: what the run is, as JSON can hold it.

    Raises:
        ValueError: the folder belongs to another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    past = read_record(folder / RECORD)
    if past not in (None, json.loads(json.dumps(run))):
        raise ValueError(f"{folder} holds another run: choose another --out, or give the same options to go on")
    replace_file(folder / RECORD, lambda path: path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8"))


def is_first_process() -> bool:
    """Tell whether this is the only process of a run, or the first of those that `torchrun` or `accelerate launch`
    started: the one that writes files."""
    return os.environ.get("RANK", "0") == "0"


def release(folder: Path) -> None:
    """Let other runs have the folder."""
    (folder / RECORD).unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path` and put it in its place at once: a crash leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder beside `path` and put it in its place at once: a crash leaves the old one or the new one.

    `path` becomes a link to a folder beside it with a number in its name. Of the folders before, none is left.

    Raises:
        ValueError: `path` is there and no such link.
    """
    if path.exists() and not path.is_symlink():
        raise ValueError(f"{path} is in the way: it is not a folder that this command has made")
    before = [each for each in path.parent.glob(f"{path.name}.*") if each.suffix[1:].isdigit()]
    made = path.with_name(f"{path.name}.{max([int(each.suffix[1:]) for each in before], default=0) + 1}")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for each in (*partial.rglob("*"), partial):
        _to_disk(each)
    os.replace(partial, made)
    link = path.with_name(path.name + ".link")
    link.unlink(missing_ok=True)
    link.symlink_to(made.name)
    os.replace(link, path)
    _to_disk(path.parent)
    for each in before:
        shutil.rmtree(each, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file, none if it is not there. Half a line at its end, where a run was cut off, is taken away."""
    if not path.exists():
        return []
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        os.truncate(path, len(kept))
    return [json.loads(line) for line in kept.splitlines()]


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one object to a JSONL file; it is written when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
