"""Resources of dead owners are removed, and those of living ones are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from waver.engines.vllm.claim import claim, reclaim

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
