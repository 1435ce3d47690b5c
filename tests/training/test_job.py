"""Folders of runs: claimed by one, gone on with by the same, refused to another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from waver.training.job import append_line, claim, read_lines, release, replace_file


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
