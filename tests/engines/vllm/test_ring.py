"""The ring between processes: what is read was written for this very position of this very request."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from waver.engines.vllm.ring import (
    COMPLETE,
    DEPTH,
    DEPTH_TOP,
    EAGER,
    LAGGED,
    SLOTS,
    TOP,
    EntropyRing,
    RingWriter,
    map_on,
)

CPU = torch.device("cpu")
HIDDEN = 24


def write(writer: RingWriter, row: int, tag: int, position: int, entropy: float, flags: int = 0, kept: int = 0) -> None:
    values = torch.tensor([entropy, -entropy / 2, entropy / 3])
    crop = (torch.tensor([kept]), values[2:])
    writer.write([row], [tag], [position], values[:1], values[1:2], torch.tensor([flags]), crop)


def test_an_entry_comes_back_whole(ring: EntropyRing) -> None:
    writer = RingWriter(ring.path, CPU)
    values = torch.tensor([[1.5, -0.25, 0.75], [-1e-9, -7.0, 0.0], [11.5, -30.0, 0.0]])
    rows, tags, positions = [0, 7, SLOTS - 1], [1, 2**31 - 1, 5], [0, 3, 10**6]
    flags = torch.tensor([EAGER, LAGGED | COMPLETE, 0])
    writer.write(rows, tags, positions, values[:, 0], values[:, 1], flags, (torch.tensor([12, 0, 0]), values[:, 2]))
    first, second, third = (ring.read(r, t, p) for r, t, p in zip(rows, tags, positions, strict=True))
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.entropy, first.logprob, first.flags, first.kept, first.crop_entropy) == (1.5, -0.25, EAGER, 12, 0.75)
    assert (second.entropy, second.flags) == (0.0, LAGGED | COMPLETE)  # float32 may fall below what cannot be
    assert (second.kept, second.crop_entropy) == (None, None)
    assert (third.entropy, third.logprob, third.top) == (11.5, -30.0, ())


def test_another_request_or_position_is_not_taken_for_this_one(ring: EntropyRing) -> None:
    writer = RingWriter(ring.path, CPU)
    assert ring.read(3, 1, 0) is None
    write(writer, 3, 1, 4, 2.0)
    assert ring.read(3, 2, 4) is None
    assert ring.read(3, 1, 5) is None
    assert ring.read(4, 1, 4) is None
    assert ring.read(3, 1, 4 + DEPTH) is None
    assert ring.read(3, 1, 4) is not None
    write(writer, 3, 2, 4, 3.0)  # the row's next owner
    assert ring.read(3, 1, 4) is None


def test_a_reader_may_fall_behind_by_a_whole_turn(ring: EntropyRing) -> None:
    writer = RingWriter(ring.path, CPU)
    for position in range(DEPTH + 10):
        write(writer, 5, 9, position, float(position))
    for position in range(DEPTH + 10):
        entry = ring.read(5, 9, position)
        assert (entry is None) == (position < 10)
        assert entry is None or entry.entropy == position


def test_alternatives(ring: EntropyRing) -> None:
    writer = RingWriter(ring.path, CPU)
    ids = torch.arange(TOP).repeat(2, 1) + torch.tensor([[100], [200_000]])
    logprobs = -torch.arange(TOP).repeat(2, 1) / 4 - 0.1
    logprobs[1, 3:] = -math.inf  # a grammar leaves three
    writer.write_top([1, 2], [1, 1], [6, 6 + DEPTH], ids, logprobs)
    write(writer, 1, 1, 6, 1.0)
    write(writer, 2, 1, 6 + DEPTH, 1.0)
    one, two = ring.read(1, 1, 6, TOP), ring.read(2, 1, 6 + DEPTH, 5)
    assert one is not None
    assert two is not None
    assert [token for token, _ in one.top] == list(range(100, 100 + TOP))
    assert [value for _, value in one.top] == pytest.approx(logprobs[0].tolist())
    assert [token for token, _ in two.top] == [200_000, 200_001, 200_002]
    writer.write_top([1], [1], [6 + DEPTH_TOP], ids[:1], logprobs[:1])  # the alternatives' turn is shorter
    assert ring.read(1, 1, 6, 1) is None
    plain = ring.read(1, 1, 6)
    assert plain is not None
    assert (plain.entropy, plain.top) == (1.0, ())
    writer.write_top([1], [1], [6], ids[:1], logprobs[:1])
    few = ring.read(1, 1, 6, 2)
    assert few is not None
    assert few.top == one.top[:2]


def test_hidden_states(ring: EntropyRing) -> None:
    writer = RingWriter(ring.path, CPU)
    states = torch.randn(2, writer.hidden)
    assert writer.hidden == ring.states.shape[1] - 1 > 0
    assert ring.state(3, 1) is None
    writer.write_states([3, SLOTS - 1], torch.tensor([1, 2**31 - 1]), states)
    writer.write_states([4], torch.tensor([1]), states[:1].bfloat16())
    for row, tag, state in ((3, 1, states[0]), (SLOTS - 1, 2**31 - 1, states[1]), (4, 1, states[0].bfloat16())):
        found = ring.state(row, tag)
        assert found is not None
        assert found.dtype == torch.float32
        assert torch.equal(found, state.float())
        assert ring.state(row, 2) is None
    kept = ring.state(3, 1)
    writer.write_states([3], torch.tensor([2]), states[1:])  # the row's next owner
    assert ring.state(3, 1) is None
    assert kept is not None
    assert torch.equal(kept, states[0])
    assert not ring.words.any()
    assert not ring.top.any()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(0, 3 * DEPTH)), min_size=1, max_size=60))
def test_what_was_written_last_counts(ring: EntropyRing, entries: list[tuple[int, int, int]]) -> None:
    writer, last = RingWriter(ring.path, CPU), dict[tuple[int, int], tuple[int, int, float]]()
    ring.words[:6] = 0
    for number, (row, tag, position) in enumerate(entries):
        write(writer, row, tag, position, number / 8)
        last[row, position % DEPTH] = (tag, position, number / 8)
    for row, tag, position in entries:
        entry = ring.read(row, tag, position)
        known = last[row, position % DEPTH]
        assert (entry is not None) == (known[:2] == (tag, position))
        assert entry is None or entry.entropy == known[2]


def scribe(path: Path, turns: int, say: Connection) -> None:
    """Another process: it writes position after position, in which all numbers agree, and says how far it is."""
    writer = RingWriter(path, CPU)
    for position in range(turns):
        ids = torch.full((1, TOP), position)
        writer.write_top([0], [77], [position], ids, torch.full((1, TOP), -float(position)))
        write(writer, 0, 77, position, float(position), flags=position % 8, kept=position + 1)
        if position % 64 == 0:
            say.send(position)
    say.send(turns)
    say.close()


def agree(ring: EntropyRing, position: int) -> bool:
    """Return whether the entry is there; if it is, it must be consistent."""
    entry = ring.read(0, 77, position, TOP) or ring.read(0, 77, position)
    if entry is None:
        return False
    assert entry.entropy == position
    assert entry.flags == position % 8
    assert entry.kept == position + 1
    assert entry.top in ((), ((position, -float(position)),) * TOP)
    return True


def test_a_writer_in_another_process_and_a_reader_at_once(ring: EntropyRing) -> None:
    turns = 6 * DEPTH
    context = multiprocessing.get_context("spawn")
    hear, say = context.Pipe(duplex=False)
    writer = context.Process(target=scribe, args=(ring.path, turns, say))
    writer.start()
    say.close()
    done, found = 0, 0
    while done < turns:
        done = hear.recv()
        ready = [p for p in range(max(0, done - 8), done) if agree(ring, p)]
        found += len(ready)
        agree(ring, done + DEPTH // 2)  # may be in the middle of being written
    writer.join(120)
    assert writer.exitcode == 0
    assert found > 20
    assert all(agree(ring, position) == (position >= turns - DEPTH) for position in range(turns))


def test_an_entry_that_is_overwritten_while_it_is_read_is_none_or_whole(ring: EntropyRing) -> None:
    """A writer turns the same place over and over; the reader sees one position or nothing, never a mixture."""
    stop, writer = threading.Event(), RingWriter(ring.path, CPU)

    def turn() -> None:
        position = 0
        while not stop.is_set():
            writer.write_top(
                [0], [77], [position], torch.full((1, TOP), position), torch.full((1, TOP), -float(position))
            )
            write(writer, 0, 77, position, float(position), flags=position % 8, kept=position + 1)
            position += DEPTH

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        for _ in range(4000):
            entry = ring.read(0, 77, int(ring.words[0, 0, 1]))
            assert entry is None or (entry.flags == entry.entropy % 8 and entry.kept == entry.entropy + 1)
    finally:
        stop.set()
        thread.join()


def test_the_file_goes_when_the_board_is_closed_and_its_users_keep_what_they_have() -> None:
    ring = EntropyRing.create(HIDDEN)
    writer = RingWriter(ring.path, CPU)
    assert ring.path.stat().st_size == ring.path.stat().st_blocks * 512 == (74 << 20) + 4096 * (1 + HIDDEN)
    ring.close()  # taken, not promised
    assert not ring.path.exists()
    ring.close()
    write(writer, 1, 2, 3, 4.0)
    entry = ring.read(1, 2, 3)
    assert entry is not None
    assert entry.entropy == 4.0
    with pytest.raises(FileNotFoundError):
        RingWriter(ring.path, CPU)


def test_two_boards_have_nothing_in_common() -> None:
    one, two = EntropyRing.create(HIDDEN), EntropyRing.create(HIDDEN)
    try:
        write(RingWriter(one.path, CPU), 0, 1, 0, 1.0)
        assert one.path != two.path
        assert two.read(0, 1, 0) is None
        assert not np.any(two.words)
    finally:
        one.close()
        two.close()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this platform has no /dev/shm")
def test_where_memory_is_short_the_board_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    take = os.posix_fallocate
    full = [Path("/dev/shm")]

    def no_room(handle: int, start: int, size: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).parent in full:
            raise OSError(errno.ENOSPC, "no space left")
        take(handle, start, size)

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(Path("/dev/shm").glob("waver-ring-*"))
    ring = EntropyRing.create(HIDDEN)
    assert ring.path.parent == tmp_path
    write(RingWriter(ring.path, CPU), 0, 1, 0, 1.0)
    assert ring.read(0, 1, 0) is not None
    ring.close()
    full.append(tmp_path)
    with pytest.raises(OSError, match="no room for 74 MiB"):
        EntropyRing.create(HIDDEN)
    assert not list(tmp_path.iterdir())
    assert set(Path("/dev/shm").glob("waver-ring-*")) <= before


def test_a_device_that_cannot_map_the_board_writes_through_the_host(
    ring: EntropyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what CUDA keeps of the failure is taken away: the next kernel would raise it."""
    kept = list[str]()

    def register(*_: int) -> int:
        kept.append("operation not supported")
        return 801

    def launch(*_: int, device: torch.device) -> None:
        raise RuntimeError(f"CUDA error: {kept.pop()}")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=register))
    monkeypatch.setattr(torch, "ones", launch)
    view = map_on(torch.device("cuda"), ring.words)
    assert view.data_ptr() == ring.words.ctypes.data
    assert not kept
