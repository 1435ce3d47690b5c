"""Worker processes end with the pool that started them."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from tests.conftest import until
from waver.isolation import Workers

ECHO = """
from waver.isolation import serve
import os
serve(lambda header, data: ({"pid": os.getpid()}, data))
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("closed", [True, False])
def test_a_process_does_not_outlive_its_pool(tmp_path: Path, closed: bool) -> None:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    pool = Workers(script, 2**31)
    header, data = pool.ask({}, b"as it was", 30)
    assert data == b"as it was"
    assert not gone(header["pid"])
    if closed:
        pool.close()
    del pool
    gc.collect()
    until(lambda: gone(header["pid"]), "the end of the process")
