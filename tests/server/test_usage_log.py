"""The file of usage records outlives rotation, other writers and full disks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from waver.server.usage_log import UsageLog


def read(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def until(path: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "deep" / "usage.jsonl", tmp_path / "usage.1"
    log = UsageLog(path)
    log.write({"n": 0})
    until(path, 1)
    path.rename(moved)
    log.write({"n": 1})
    until(path, 1)
    path.unlink()
    log.write({"n": 2})
    log.close()
    assert (read(moved), read(path), log.lost) == ([0], [2], 0)


def test_what_waits_is_written_at_the_end_and_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_text('{"n":-1}\n')
    one, other = UsageLog(path), UsageLog(path)
    for n in range(2500):
        (one if n % 2 else other).write({"n": n})
    one.close()
    other.close()
    found = read(path)
    assert found[0] == -1
    assert sorted(found[1:]) == list(range(2500))
    assert [n for n in found[1:] if n % 2] == list(range(1, 2500, 2))


def test_a_full_disk_loses_records_and_says_so(tmp_path: Path) -> None:
    log = UsageLog(Path("/dev/full"))
    log.write({"n": 1})
    log.write({"n": 2})
    log.close()
    assert log.lost == 2


def test_half_a_line_does_not_spoil_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "usage.jsonl"
    log = UsageLog(path)
    writes: list[bytes] = []

    class Full:
        """A disk that is full in the middle of the first line, and has room again for the second."""

        def write(self, data: bytes) -> int:
            writes.append(data)
            if len(writes) == 1:
                return 4
            if len(writes) == 2:
                raise OSError(28, "No space left on device")
            return len(data)

        def fileno(self) -> int:
            return 1

        def close(self) -> None: ...

    log.close()
    monkeypatch.setattr(log, "_file", Full())
    monkeypatch.setattr(log, "_moved", lambda: False)
    monkeypatch.setattr("os.fsync", lambda number: None)
    log._append([b'{"n":1}\n'])
    log._append([b'{"n":2}\n'])
    assert (writes[-1], log.lost) == (b'\n{"n":2}\n', 1)


def test_a_file_that_cannot_be_written_is_told_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"server\.usage_file: /dev/null/x cannot be written"):
        UsageLog(Path("/dev/null/x"))
