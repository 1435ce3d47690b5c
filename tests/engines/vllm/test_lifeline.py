"""Processes that end with the one that started them, and beats that stop when a process does."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import until
from waver.benchmarks.processes import running_state
from waver.engines.vllm import lifeline
from waver.engines.vllm.lifeline import BEAT, Lifeline

Sit = Callable[..., tuple[subprocess.Popen[str], list[int]]]


@pytest.fixture
def line(tmp_path: Path) -> Lifeline:
    return Lifeline(tmp_path)


@pytest.fixture
def sit(line: Lifeline) -> Iterator[Sit]:
    """Start a server and its processes of some kinds (`tests.engines.vllm.sitting`)."""
    servers, everyone = list[subprocess.Popen[str]](), list[int]()

    def begin(*kinds: str) -> tuple[subprocess.Popen[str], list[int]]:
        command = [sys.executable, str(Path(__file__).with_name("sitting.py")), str(line._path), *kinds]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        servers.append(server)
        assert server.stdout is not None
        processes = [int(server.stdout.readline()) for _ in kinds]
        everyone.extend(processes)
        until(lambda: set(processes) <= set(line._beats[:, 0].tolist()), "the processes to take hold")
        return server, processes

    yield begin
    for server in servers:
        server.kill()
        server.communicate()
    for process in everyone:
        if running_state(process) is not None:
            os.kill(process, signal.SIGKILL)


def test_a_process_beats_whatever_it_does_and_not_while_it_is_stopped(line: Lifeline, sit: Sit) -> None:
    _, (idle, busy) = sit("idle", "busy")
    longest = 0.0
    for _ in range(30):
        time.sleep(0.1)
        longest = max(longest, line.silence())
    assert longest < 6 * BEAT  # it shares its cores with other tests
    for process in (idle, busy):
        os.kill(process, signal.SIGSTOP)
        until(lambda: line.silence() > 8 * BEAT, "the silence")
        os.kill(process, signal.SIGCONT)
        until(lambda: line.silence() < 3 * BEAT, "the beat")


def test_a_process_that_has_ended_is_none_that_hangs(line: Lifeline) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    line._beats[0] = process.pid, 1
    heard = []
    for _ in range(8):
        time.sleep(BEAT)
        heard.append(line.silence())
    assert max(heard) <= 3 * BEAT


def test_who_was_stopped_itself_has_heard_nobody(line: Lifeline, monkeypatch: pytest.MonkeyPatch) -> None:
    line._beats[0] = os.getpid(), 1
    assert line.silence() == 0  # it has just begun
    now = time.monotonic()
    monkeypatch.setattr(lifeline.time, "monotonic", lambda: now + 3600)
    assert line.silence() == pytest.approx(1)
    monkeypatch.setattr(lifeline.time, "monotonic", lambda: now + 3600.5)
    assert line.silence() == pytest.approx(1.5)


def test_copies_at_home_do_nothing(line: Lifeline, tmp_path: Path) -> None:
    threads = threading.active_count()
    copy.deepcopy(line)
    pickle.loads(pickle.dumps(line))
    assert threading.active_count() == threads
    assert not line._beats.any()
    line.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process has to run to see that its parent is gone")
def test_processes_end_with_a_server_that_is_killed(sit: Sit) -> None:
    server, processes = sit("idle", "busy", "stuck", "idle")
    os.kill(processes[-1], signal.SIGSTOP)
    time.sleep(0.2)
    assert [running_state(process) in "SRT" for process in processes] == [True] * 4
    server.kill()
    server.wait()
    until(lambda: all(running_state(process) in (None, "Z") for process in processes), "their end")


def test_without_the_kernels_help_a_thread_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    ended: list[tuple[int, Any]] = []
    parents = [4242, 4242, 4242, 1]
    monkeypatch.setattr(lifeline, "BEAT", 0.05)
    monkeypatch.setattr(lifeline, "end_with_parent", lambda: None)
    system = SimpleNamespace(**vars(os))  # of this module alone: others call it meanwhile, as do engines that run
    system.kill = lambda process, signal: ended.append((process, signal)) if signal else os.kill(process, signal)
    system.getppid = lambda: parents.pop(0)
    monkeypatch.setattr(lifeline, "os", system)
    lifeline.hold(tmp_path / "gone", 4242)
    until(lambda: ended == [(os.getpid(), signal.SIGKILL)], "the end")
    assert not parents
