"""A server over vLLM that is killed: nothing of it goes on, and nothing of it is left."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, until
from tests.engines.vllm_here import needs_vllm
from waver.benchmarks.processes import descendants, free_port, running, running_state
from waver.engines.vllm.claim import PREFIX, claim, reclaim

pytestmark = [needs_vllm, pytest.mark.timeout(900)]
SHARED = re.compile(r"/dev/shm/\S+(?! \(deleted\))$", re.M)


def shared(process: int) -> set[Path]:
    """Files in shared memory that a process maps and that are still there."""
    maps = Path(f"/proc/{process}/maps").read_text()
    return {path for path in map(Path, SHARED.findall(maps)) if path.exists()}


def test_a_server_that_is_killed_leaves_no_process_and_no_memory(tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "waver.yaml"
    engine = {
        "backend": "vllm", "model": str(ROOT / "models" / "small"),
        "args": {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 4},
    }  # fmt: skip
    content = {"engines": {"small": engine}, "server": {"port": port}, "retrieval": {"path": str(tmp_path / "data")}}
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "waver", "serve", "--config", str(file)]
    with running(command, tmp_path / "log", f"http://127.0.0.1:{port}/ready", 600) as server:
        family = descendants(server)
        workers = [name for name in family.values() if name.startswith("VLLM::")]
        assert len(workers) == 2
        memory = set[Path]().union(*map(shared, family))
        assert memory
        os.kill(server, 9)
        until(lambda: all(running_state(each) in (None, "Z") for each in family), "the end of all processes")
        until(lambda: not any(path.exists() for path in memory), "the end of the memory")
        above = Path(tempfile.gettempdir())
        assert [path for path in above.glob(f"{PREFIX}*") if (handle := claim(path)) and not os.close(handle)]
        reclaim(above, PREFIX)  # as the next start does
        assert not [path for path in above.glob(f"{PREFIX}*") if (handle := claim(path)) and not os.close(handle)]
