"""A truncation of a plug-in reaches the process that holds the logits, through vLLM's JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.server.test_plugins import TRUNCATION
from waver.engines import plugins

WORKER = """
import sys, torch
from waver.engines.transforms import from_data, truncate
from waver.engines.vllm.params import RequestParams
params = RequestParams.from_client('{"transforms": [{"name": "toy_best", "slack": 1.0}]}')
kept = truncate(torch.tensor([[0.0, 2.0, 2.5]]), [params.transforms]).kept
assert kept.tolist() == [2], kept
assert not [name for name in sys.modules if name.startswith("waver.policies")]
"""


def test_a_worker_process_finds_it_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "toy_cut.py").write_text(TRUNCATION)
    environment = {plugins.VARIABLE: '["toy_cut"]', "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
