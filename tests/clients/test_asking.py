"""`waver calibrate c_ip` at a real server: thresholds, what they are worth, and a run that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running
from waver.clients.asking import HISTORIES, Measured, _worth, calibrate
from waver.clients.options import Pursuit
from waver.policies.ask.task import AskTask, ready_tasks
from waver.policies.ask.thresholds import Thresholds

FEW = Pursuit(model="small", alpha=0.2, length=4, count=12, fresh=3, seed=0, at_once=8)


def test_thresholds_come_of_a_server_and_a_stopped_run_goes_on(running: Running, tmp_path: Path) -> None:
    said: list[str] = []
    assert calibrate("triage", FEW, f"{running.url}/v1", None, tmp_path, said.append) == 0
    made = Thresholds.load(tmp_path)
    assert [len(own) for own in made.true] == [12] * 4
    assert made.task == AskTask.load(ready_tasks()["triage"]).digest
    assert "After 4 and more random questions" in said[0]
    assert "of 15 histories; by chance it would be in 10.0%." in said[0]
    assert "promised are 80.0%" in said[1]
    lines = (tmp_path / HISTORIES).read_text().splitlines()
    assert len(lines) == 4 * 15
    (tmp_path / HISTORIES).write_text("".join(f"{line}\n" for line in lines[:50]))
    again: list[str] = []
    assert calibrate("triage", FEW, f"{running.url}/v1", None, tmp_path, again.append) == 0
    assert again == said
    ordered = sorted(json.loads(line)["true"] for line in lines)
    found = sorted(json.loads(line)["true"] for line in (tmp_path / HISTORIES).read_text().splitlines())
    assert found == pytest.approx(ordered, abs=1e-3)
    other = replace(FEW, seed=1)
    assert calibrate("triage", other, f"{running.url}/v1", None, tmp_path, again.append) == 1


@pytest.mark.parametrize(("right", "told"), [(12, "makes nothing of the answers"), (60, "")])
def test_a_model_that_guesses_by_chance_is_told(right: int, told: str) -> None:
    thresholds: Any = None
    found = _worth(Measured(thresholds, [], 4, 100, right, 10), "mine")
    assert f"right in {right / 100:.1%} of 100 histories" in found
    assert ("mine makes nothing of the answers" in found) == bool(told)
