"""Folders of runs: claimed by one, gone on with by the same, refused to another."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from waver.job import append_line, claim, read_lines, release, replace_file, replace_folder


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    claim(folder, {"seed": 1, "chain": (4, 8)})
    claim(folder, {"seed": 1, "chain": (4, 8)})
    assert json.loads((folder / "run.json").read_text()) == {"seed": 1, "chain": [4, 8]}
    with pytest.raises(ValueError, match="holds another run"):
        claim(folder, {"seed": 2, "chain": (4, 8)})
    with pytest.raises(ValueError, match="holds another run"):
        claim(folder, {"seed": 1})
    release(folder)
    claim(folder, {"seed": 2})


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    replace_file(file, lambda path: path.write_text("old"))

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        replace_file(file, fails)
    assert file.read_text() == "old"


def test_half_a_line_is_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert read_lines(file) == []
    append_line(file, {"place": 0})
    append_line(file, {"place": 1})
    with file.open("a") as out:
        out.write('{"pla')
    assert read_lines(file) == [{"place": 0}, {"place": 1}]
    append_line(file, {"place": 2})
    assert [line["place"] for line in read_lines(file)] == [0, 1, 2]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def write(text: str) -> Callable[[Path], object]:
        return lambda path: (path / "weights").write_text(text)

    replace_folder(folder, write("one"))
    replace_folder(folder, write("two"))
    assert (folder / "weights").read_text() == "two"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "model.2"]

    def fails(path: Path) -> None:
        (path / "weights").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        replace_folder(folder, fails)
    assert (folder / "weights").read_text() == "two"
    replace_folder(folder, write("three"))
    assert (folder / "weights").read_text() == "three"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "model.3"]


@pytest.mark.parametrize("fatal", [1, 2])
def test_a_crash_at_any_rename_leaves_a_whole_folder(
    fatal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "model", []
    replace_folder(folder, lambda path: (path / "weights").write_text("old"))
    rename = os.replace

    def dies(*names: Any) -> None:
        calls.append(names)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, lambda path: (path / "weights").write_text("new"))
    assert (folder / "weights").read_text() == "old"
    monkeypatch.setattr(os, "replace", rename)
    replace_folder(folder, lambda path: (path / "weights").write_text("new"))
    assert (folder / "weights").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="is in the way"):
        replace_folder(tmp_path / "model", lambda path: None)
