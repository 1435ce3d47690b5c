"""Resources of dead owners are removed, and those of living ones are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, until
from waver.benchmarks.processes import running_state
from waver.engines.vllm.claim import MEMORY, claim, reclaim
from waver.engines.vllm.lifeline import RECORD, Lifeline

OWNER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from waver.engines.vllm.claim import claim
print([claim(Path(each)) is not None for each in {paths!r}], flush=True)
sys.stdin.read()
"""


def test_what_has_an_owner_stays_until_that_dies(tmp_path: Path) -> None:
    folder, file, other = tmp_path / "waver-folder", tmp_path / "waver-file", tmp_path / "another-file"
    folder.mkdir()
    (folder / "socket").write_text("")
    for each in (file, other):
        each.write_text("")
    code = OWNER.format(root=str(ROOT), paths=[str(folder), str(file)])
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "[True, True]\n"
        assert claim(file) is None
        reclaim(tmp_path, "waver-")
        assert folder.exists()
        assert file.exists()
        owner.kill()
        owner.wait()
        reclaim(tmp_path, "waver-")
    assert list(tmp_path.iterdir()) == [other]


def test_a_file_that_is_gone_cannot_be_claimed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert claim(file) is None
    file.write_text("")
    handle = claim(file)
    assert handle is not None
    os.close(handle)
    again = claim(file)
    assert again is not None
    os.close(again)


@pytest.mark.skipif(not MEMORY.is_dir(), reason="this platform does not show shared memory as files")
def test_shared_memory_of_processes_that_were_all_killed_is_removed(tmp_path: Path) -> None:
    """With the trackers of the processes, which would have removed it."""
    folder = tmp_path / "waver-folder"
    folder.mkdir()
    line = Lifeline(folder)
    sitting = [sys.executable, str(Path(__file__).with_name("sitting.py")), str(line._path), "sharing"]
    with subprocess.Popen(sitting, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        assert server.stdout is not None
        said = [server.stdout.readline().split() for _ in range(2)]  # the process's id, and its memory, in any order
        os.killpg(server.pid, signal.SIGKILL)
    names = dict(entry.split(" /") for entry in (folder / RECORD).read_text().splitlines())
    assert ["shared", names["shared_memory"]] in said
    left = [MEMORY / names["shared_memory"], MEMORY / f"sem.{names['semaphore']}"]
    until(lambda: not running_state(server.pid), "the end of the processes")
    assert [each.exists() for each in left] == [True, True]
    (folder / RECORD).write_text((folder / RECORD).read_text() + "shared_memory /../etc/passwd\nfolder /x\nnothing\n")
    reclaim(tmp_path, "waver-")
    assert [each.exists() for each in left] == [False, False]
    assert not folder.exists()
