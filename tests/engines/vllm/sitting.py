"""`python sitting.py BEATS KIND...`: a server that is nothing but the parent of processes that hold on to its lifeline,
as those of an engine do. It prints their ids. The lifeline is imported by itself, as torch takes its time."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "engines" / "vllm"))
from lifeline import Lifeline


def sit(_: Lifeline, kind: str) -> None:
    """Wait, compute, hold the interpreter so that no thread of the process can run, or make a lock and memory that
    processes share."""
    if kind == "busy":
        while True:
            pass
    if kind == "sharing":
        kept = multiprocessing.get_context("spawn").Lock(), SharedMemory(create=True, size=16)
        print("shared", kept[1].name, flush=True)
    if kind == "stuck":
        ctypes.PyDLL(None).sleep(3600)  # PyDLL does not let go of the interpreter
    time.sleep(3600)


if __name__ == "__main__":
    line = Lifeline.__new__(Lifeline)
    line.__setstate__((Path(sys.argv[1]), 0))
    context = multiprocessing.get_context("spawn")
    for kind in sys.argv[2:]:
        process = context.Process(target=sit, args=(line, kind))
        process.start()
        print(process.pid, flush=True)
    time.sleep(3600)
