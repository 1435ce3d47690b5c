"""Two data-parallel processes train as one does, by every method; and what they show each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from tests.training.rl.adapters.ranks import RECIPES, tiny, train_all
from waver.training.rl.adapters.trl_ranks import Ranks

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """All recipes by one process with micro-batches of four, and by two with micro-batches of three."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[3]), "OMP_NUM_THREADS": "1"}
    model = tiny(folder / "tiny")
    two = subprocess.Popen([*command, str(HERE / "ranks.py"), str(folder)], env=env, stderr=subprocess.PIPE, text=True)
    try:
        alone = train_all(model, rows=4, parts=3)
    finally:
        said = two.communicate(timeout=300)[1]
    assert two.returncode == 0, said
    return alone, torch.load(folder / "2.pt", weights_only=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_as_one(recipe: str, runs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    alone, together = (run[recipe] for run in runs)
    torch.testing.assert_close(together["weights"], alone["weights"], atol=1e-6, rtol=0)
    assert len(alone["log"]) == len(together["log"]) == 4
    for one, other in zip(alone["log"], together["log"], strict=True):
        assert one.keys() == other.keys()
        assert {n: v for n, v in other.items() if v is not None} == pytest.approx(
            {n: v for n, v in one.items() if v is not None}, abs=1e-5, rel=1e-5
        )


def test_recipes_differ(runs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Each recipe ends at weights of its own: none of them was without effect."""
    ends = {name: run["weights"] for name, run in runs[0].items()}
    for name, end in ends.items():
        others = [float((end - other).abs().max()) for known, other in ends.items() if known != name]
        assert min(others) > 1e-6, name


def test_chosen_rows_are_enough_for_every_process() -> None:
    """Groups of three over two processes: an odd number of groups is filled up with the first."""
    ranks = Ranks(SimpleNamespace(num_processes=2, process_index=1))
    assert ranks.spread([3, 4, 5], 3) == [3, 4, 5, 3, 4, 5]
    assert ranks.spread([0, 1, 2, 6, 7, 8], 3) == [0, 1, 2, 6, 7, 8]
    assert ranks.mine([3, 4, 5, 3, 4, 5]) == [3, 4, 5]
