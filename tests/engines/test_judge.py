"""Judges on disk: what is written is what is read, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from waver.engines.boosting import Trees
from waver.engines.fingerprint import Fingerprint
from waver.engines.judge import Convention, Judge, Record

PRINT = Fingerprint(ids=(1, 2, 3), entropies=(0.5, 1.5))


def stump() -> Judge:
    """Log-odds of -1 where the first feature is at most 0.5, else 2; on top of a base of 0.5."""
    arrays = {
        "roots": np.array([0]),
        "feature": np.array([0, -1, -1]),
        "threshold": np.array([0.5, 0, 0]),
        "left": np.array([1, 0, 0]),
        "right": np.array([2, 0, 0]),
        "value": np.array([0, -1.0, 2.0]),
        "base": np.array([0.5]),
    }
    record = Record(model="m", convention=Convention(), features=("a", "b"), models={"solver": PRINT})
    return Judge(Trees.of(arrays, 2), np.array([0.9, 0.0]), record)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    stump().save(tmp_path)
    judge = Judge.load(tmp_path)
    assert judge.record == stump().record
    assert judge({"a": 0.5}) == pytest.approx(sigmoid(-0.5))
    assert judge({"a": 0.6, "b": 7.0}) == pytest.approx(sigmoid(2.5))
    assert judge({}) == judge({"a": float("nan")}) == pytest.approx(sigmoid(2.5)), "the median stands in"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("left", np.array([0, 0, 0])),  # a walk that would never end
        ("right", np.array([9, 0, 0])),
        ("feature", np.array([2, -1, -1])),
        ("roots", np.array([3])),
        ("value", np.array([0.0])),
        ("medians", np.array([0.0])),
        ("base", np.array([0.0, 1.0])),
    ],
)
def test_damaged_judges_are_refused(tmp_path: Path, name: str, value: np.ndarray) -> None:
    stump().save(tmp_path)
    file = tmp_path / "judge.safetensors"
    save_file({**load_file(file), name: value}, file)
    with pytest.raises(ValueError, match="cannot be read: its arrays do not fit together"):
        Judge.load(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no judge: judge\.json is missing"):
        Judge.load(tmp_path)
    stump().save(tmp_path)
    (tmp_path / "judge.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="cannot be read"):
        Judge.load(tmp_path)


def test_a_judge_knows_its_model_and_convention() -> None:
    judge = stump()
    near = Fingerprint(ids=(1, 2, 3), entropies=(0.52, 1.47))
    assert judge.misfit(Convention(), {"solver": near}) is None
    for models, words in (
        ({"solver": Fingerprint(ids=(1, 2, 3), entropies=(0.5, 2.5))}, "another model"),
        ({"solver": Fingerprint(ids=(1, 2, 4), entropies=(0.5, 1.5))}, "another chat template"),
        ({"solver": Fingerprint(ids=(1, 2, 3))}, "measures differently"),
        ({"planner": PRINT}, "trained on the roles solver"),
    ):
        assert words in (judge.misfit(Convention(), models) or "")
    said = judge.misfit(Convention(temperature=1.0, entropy="raw"), {"solver": PRINT})
    assert said == "this judge was trained with entropy drawn and not raw, temperature 0.6 and not 1.0"
