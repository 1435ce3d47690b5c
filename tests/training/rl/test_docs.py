"""The page on methods says what is so: its example runs, and its table names every method."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from waver.training.rl import names

PAGE = (Path(__file__).parents[3] / "docs" / "training-methods.md").read_text()
SNIPPET, METHOD, TRIAL = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_example_is_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "surprise.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(SNIPPET, "snippet", "exec"), {})
    exec(compile(TRIAL, "trial", "exec"), space := {})
    history = space["history"]
    assert 0 < history.tokens_updated < 3 * 48 * 8
    assert history.steps[-1]["surprise/bar"] > 0
    assert len(capsys.readouterr().out.split()) == 4


def test_every_method_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) == set(names())
