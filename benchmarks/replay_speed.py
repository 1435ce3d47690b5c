"""Compare the decoding steps of two checkouts, in turn, each in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.processes import end
from waver.benchmarks.replay_server import VLLM_ARGS, environment
from waver.benchmarks.stats import middle, typical_of_groups
from waver.benchmarks.throughput import alternately

BEFORE, AFTER = "before", "after"
BAR = 0.02
"""The most that the median ratio should be away from 1."""
OPTIONS: dict[str, dict[str, Any]] = {"transformers": {}, "vllm": {"args": VLLM_ARGS}}
"""Fields of the engines' configurations, besides the model."""
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "gate": False},
    "temperature 1 and a gate": {"temperature": 1.0, "gate": True},
}


@dataclass(frozen=True)
class Decoder:
    """One checkout's engine, in a process of its own."""

    process: subprocess.Popen[str]
    log: Path

    def ask(self, asked: Mapping[str, Any] | None = None) -> Any:
        """Return the next message of the process, for a batch if one is given.

        Raises:
            RuntimeError: it has ended; the message holds the end of its log.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if asked is not None:
            print(json.dumps(asked), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine ended:\n{self.log.read_text(errors='replace')[-2000:]}")
        return json.loads(line)


@contextmanager
def decoding(tree: Path, backend: str, model: Path, folder: Path) -> Iterator[Decoder]:
    """Yield the bundled large model in an engine of a checkout, ready to decode."""
    prefix = "" if (tree / "waver.py").exists() else "waver."
    settings = {"prefix": prefix, "backend": backend, "model": str(model), "options": OPTIONS[backend]}
    script = Path(__file__).with_name("replay_steps.py")
    folder.mkdir()
    env = os.environ | environment(tree, folder / "metadata")
    # -P: the folder of the script holds modules that are named as an older checkout's packages are.
    command = [sys.executable, "-P", str(script), json.dumps(settings)]
    log = folder / "engine.log"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stderr=errors, env=env, start_new_session=True, **pipes) as process,
    ):
        try:
            found = Decoder(process, log)
            found.ask()
            yield found
            assert process.stdin is not None
            process.stdin.close()  # no more batches
            process.wait(60)
        finally:
            end(process)


def rounds(decoders: Mapping[str, Decoder], batch: Mapping[str, Any], count: int, first: int) -> list[dict[str, Any]]:
    """Return seconds of a step of both, round by round, after one to warm up; which goes first alternates."""
    made = []
    for number in range(-1, count):
        asked = {**batch, "seed": first + number}
        took = {each: decoders[each].ask(asked) for each in alternately(first + number, BEFORE, AFTER)}
        if number >= 0:
            made.append(took)
    return made


def compare(before: Path, after: Path, backend: str, settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    """Return ratios of the later checkout's step to the earlier one's, of each way to ask: the median with its
    interval."""
    starts, runs = settings["starts"], settings["rounds"]
    task = bar.add_task(backend, total=starts * len(WAYS))
    made: dict[str, list[list[dict[str, float]]]] = {name: [] for name in WAYS}
    for start in range(starts):
        trees = {BEFORE: before, AFTER: after}
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            decoders = {
                each: stack.enter_context(decoding(trees[each], backend, before / "models/large", Path(scratch) / each))
                for each in alternately(start, BEFORE, AFTER)
            }
            for name, way in WAYS.items():
                batch = {**way, "rows": settings["rows"], "tokens": settings["tokens"]}
                made[name].append(rounds(decoders, batch, runs, start * (runs + 1)))
                bar.advance(task)
    return {name: _ratio(groups) for name, groups in made.items()}


def _ratio(groups: list[list[dict[str, float]]]) -> dict[str, Any]:
    found = typical_of_groups([[each[AFTER] / each[BEFORE] for each in group] for group in groups])
    every = [each for group in groups for each in group]
    return {
        "ratio": found,
        "met": abs(found["median"] - 1) <= BAR,
        "step_ms": {side: middle([1000 * each[side] for each in every]) for side in (BEFORE, AFTER)},
    }


def page(numbers: Mapping[str, Any]) -> list[str]:
    settings, found = numbers["settings"], numbers["backends"]
    rows = [
        [
            f"{backend}, {name}",
            report.ratio(case["ratio"]),
            *(f"{case['step_ms'][side]['median']:.3f}" for side in (BEFORE, AFTER)),
            report.verdict(case["met"]),
        ]
        for backend, ways in found.items()
        for name, case in ways.items()
    ]
    return [
        "# A decoding step of two versions",
        f"The bundled large model, {settings['rows']} rows of {settings['tokens']} tokens at a time, decoded by "
        f"{numbers['before']} and by {numbers['after']} in turn, each in processes of its own that were started "
        f"{settings['starts']} times; {settings['rounds']} rounds for each start, after one to warm up. A ratio is "
        "after : before, the median of all rounds, with its 95 % interval (bootstrap over the starts). A step is the "
        f"time while all rows are written, through the number of their tokens. Wanted: within {BAR:.0%} of 1.",
        report.table(("engine, how it is asked", "ratio", "before, ms", "after, ms", f"within {BAR:.0%}"), rows),
    ]
