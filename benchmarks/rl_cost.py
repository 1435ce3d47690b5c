"""Measure what a training method costs: the time of its step and the memory of its tensors, against plain GRPO.

Every method has a trainer of its own, and all of them take turns, step by step: what else the machine does meets them
alike. What is timed is the CPU time of the thread, in which everything runs, so that waiting for a core costs nothing.
The learning rate is 0 and each round begins with the same seed: all draw from the same policy and, but for those that
change the draws, the same rows.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.profiler import ProfilerActivity, profile
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from waver.benchmarks import report
from waver.benchmarks.answers import SMALL
from waver.benchmarks.stats import middle
from waver.resources import MODELS
from waver.training.options import RlRun
from waver.training.rl import make_recipe, names
from waver.training.rl.adapters.forward import needs_logits
from waver.training.rl.adapters.head import CHUNK
from waver.training.rl.monitor import Monitor
from waver.training.rl.run import make_trainer, parts, questions

PLAIN = "grpo"
FUSED = "grpo, fused attention"
TRL = "TRL's own trainer"
VALUES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "steer": ({}, {"estimator": "exact"}),
    "entropy_dynamics": ({}, {"rule": "vocabulary"}),
    "ares": ({}, {"beta": 0.0}),
}
"""Parameters that change what a method computes; all others run at their defaults."""

app = report.command()


def cases(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return recipes by what they are called: plain GRPO, and every method on it."""
    found: dict[str, dict[str, Any]] = {PLAIN: {}, FUSED: {}, TRL: {}}
    for name in methods:
        for values in VALUES.get(name, ({},)):
            said = ", ".join([name, *(f"{key} {value}" for key, value in values.items())])
            # Groups without a contrast are kept for all, so that all learn from the same rows.
            found[said] = {"methods": [{"name": name, **values}], "dynamic_sampling": False}
    return found


@dataclass
class RoundRobin:
    """A round-robin of threads: one step after the other. A thread that ends is passed over."""

    left: list[str]
    at: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.left[self.at] == name)

    def passes(self) -> None:
        with self.changed:
            self.at = (self.at + 1) % len(self.left)
            self.changed.notify_all()

    def leave(self, name: str) -> None:
        with self.changed:
            place = self.left.index(name)
            self.left.remove(name)
            self.at -= place < self.at
            self.at %= max(1, len(self.left))
            self.changed.notify_all()


class Timed(TrainerCallback):
    """Times the steps of one trainer, a step being all updates on the rows of one generation.

    The round after the last timed one goes to the profiler, for the memory.
    """

    def __init__(self, name: str, turns: RoundRobin, updates: int, rounds: int, trainer: Any) -> None:
        self.name, self.turns, self.updates, self.rounds = name, turns, updates, rounds
        self.whole: list[float] = []
        self.drawing: list[float] = []
        self.peak = 0
        self._began = 0.0
        self._profiler: Any = None
        self._draw = trainer._generate
        trainer._generate = self._drawn

    def _drawn(self, *args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        rows = self._draw(*args, **kwargs)
        self.drawing[-1] += time.thread_time() - began
        return rows

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        round_, update = divmod(state.global_step, self.updates)
        if update:
            return
        self.turns.wait(self.name)
        torch.manual_seed(round_)
        self.drawing.append(0.0)
        if round_ == self.rounds:
            self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profiler.start()
        self._began = time.thread_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.updates:
            return
        self.whole.append(time.thread_time() - self._began)
        if self._profiler is not None:
            self._profiler.stop()
            self.peak = peak_bytes(self._profiler)
        gc.collect()  # a step's tensors wait in cycles, and twenty trainers have one each
        self.turns.passes()


def peak_bytes(profiler: Any) -> int:
    """Return the most bytes of tensors that were held at once, of those made while it watched."""
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def share_memory() -> None:
    """Use one heap for all threads: each would keep one of its own, with all that its steps have freed."""
    if sys.platform == "linux":
        arena_max = -8
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: 1)(arena_max, 1)


@contextmanager
def leaving(turns: RoundRobin, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        turns.leave(name)


def measure(settings: Mapping[str, Any], wanted: Mapping[str, dict[str, Any]]) -> dict[str, Timed]:
    """Return all methods in turns.

    Raises:
        RuntimeError: one of the trainers did not come to its end.
    """
    rounds, updates = settings["rounds"] + 1, settings["updates"]
    run = RlRun(
        model=str((settings["models"] or MODELS) / SMALL),
        recipe={},
        chain=settings["chain"],
        steps=rounds + 1,
        prompts=settings["prompts"],
        group=settings["group"],
        updates=updates,
        length=settings["length"],
        learning_rate=0.0,
        held_out=0,
        every=rounds + 2,
    )
    torch.set_num_threads(1)
    share_memory()
    task, turns = questions(run), RoundRobin(list(wanted))
    watches: dict[str, Timed] = {}
    failed: list[tuple[str, BaseException]] = []
    with tempfile.TemporaryDirectory() as work:
        trainers: dict[str, Any] = {}
        for name, recipe in wanted.items():
            made, folder = make_recipe(**{"max_length": run.length, **recipe}), Path(work) / str(len(trainers))
            if name == TRL:
                trainer = GRPOTrainer(**parts(run, task, folder))
                trainer.remove_callback(PrinterCallback)
            else:
                trainer = make_trainer(run, made, task, folder, resumed=False)
                trainer.remove_callback(Monitor)
            if name == FUSED:
                trainer.model.set_attn_implementation("sdpa")
            watches[name] = Timed(name, turns, updates, rounds, trainer)
            trainer.add_callback(watches[name])
            trainers[name] = trainer

        def go(name: str) -> None:
            with leaving(turns, name):
                torch.set_num_threads(1)
                try:
                    trainers[name].train()
                except BaseException as error:
                    failed.append((name, error))

        threads = [threading.Thread(target=go, args=(name,)) for name in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        name, error = failed[0]
        raise RuntimeError(f"{name} did not come to its end: {error}") from error
    return watches


def numbers(watches: Mapping[str, Timed], rounds: int) -> dict[str, Any]:
    """Return ratios to plain GRPO in the same round, the first round left out, and peaks of memory in bytes."""

    def timed(name: str) -> tuple[np.ndarray, np.ndarray]:
        whole, drawing = (np.array(x[1 : rounds + 1]) for x in (watches[name].whole, watches[name].drawing))
        return whole, whole - drawing

    whole, learning = timed(PLAIN)
    rows = {}
    for name, watch in watches.items():
        own_whole, own_learning = timed(name)
        rows[name] = {
            "step": middle(list(own_whole / whole)),
            "learning": middle(list(own_learning / learning)),
            "peak": watch.peak,
            "more": watch.peak - watches[PLAIN].peak,
        }
    price = middle(list(whole / timed(TRL)[0]))
    return {"rows": rows, "price": price, "seconds": middle(list(whole)), "learning_seconds": middle(list(learning))}


def page(found: Mapping[str, Any]) -> list[str]:
    s, rows = found["settings"], found["rows"]
    lines = [
        (
            {FUSED: f"`{PLAIN}`, fused attention", TRL: TRL}.get(name, f"`{name}`"),
            _range(row["step"]),
            _range(row["learning"]),
            f"{row['peak'] / 2**20:.0f}",
            f"{row['more'] / 2**20:+.0f}",
        )
        for name, row in rows.items()
    ]
    return [
        "# What training methods cost",
        f"The bundled small model, {s['prompts'] * s['group']} rows a step ({s['prompts']} sums of {s['chain'][0]} to "
        f"{s['chain'][1]} operations, {s['group']} answers each of at most {s['length']} tokens), {s['updates']} "
        f"updates, one CPU thread, through `waver train rl`'s trainer. Methods take turns step by step; ratios of "
        f"CPU time are to plain `grpo` in the same round, over {s['rounds']} rounds: the median, and in brackets the "
        f"least and the greatest. A step of `grpo` took {found['seconds']['median']:.2f} s of CPU, "
        f"{found['learning_seconds']['median']:.2f} s of it without the drawing of rows. The same GRPO takes "
        f"{_range(found['price'])} times as long through our trainer as through TRL's own.",
        report.table(("method, on `grpo`", "step", "without the drawing", "memory, MiB", "more than `grpo`"), lines),
        "*Without the drawing*: rewards, the pass before the updates, hooks, updates. *Memory*: the most that tensors "
        "made in a step held at once (PyTorch's profiler, one step; the model and the optimizer's state are not in "
        "it). On a CPU `waver train rl` computes attention unfused for all, as a method that reads attention weights "
        "has to; the row with fused attention says what that costs where it is not needed. Methods that measure logits "
        f"({', '.join(f'`{name}`' for name in found['reading_logits'])}) have at most {CHUNK:,} of them at a time, and "
        "make them again in the backward pass, as TRL's own head does; with the 1,280 tokens of this vocabulary a "
        "micro-batch fits into one piece.",
    ]


def _range(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f}–{ratio['highest']:.2f})"


@app.command()
def main(
    context: typer.Context,
    methods: Annotated[str | None, typer.Option(help="Names, with commas.", show_default="all of them")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps that count, of each; one more comes before them.")] = 7,
    chain: Annotated[tuple[int, int], typer.Option(min=1, help="Shortest and longest sums, in operations.")] = (4, 8),
    prompts: Annotated[int, typer.Option(min=1, help="Questions a step.")] = 16,
    group: Annotated[int, typer.Option(min=2, help="Answers to each.")] = 8,
    updates: Annotated[int, typer.Option(min=1, help="Optimizer steps on the rows of a step.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 128,
    models: report.Models = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure the time of a step and the memory of its tensors, for every training method against plain GRPO.

    Writes rl_cost.json and .md. About ten minutes of one core, and some GiB for the trainers of all methods.
    """
    report.need_extra()
    wanted = methods.split(",") if methods else list(names())
    if unknown := sorted(set(wanted) - set(names())):
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(names())}")
    settings = dict(context.params)
    conditions = report.conditions("rl-cost", settings)
    planned = cases(wanted)
    made = {name: make_recipe(**recipe) for name, recipe in planned.items()}
    reading = [n for n, recipe in made.items() if any(needs_logits(recipe, live=live) for live in (False, True))]
    found = conditions | {"reading_logits": reading} | numbers(measure(settings, planned), rounds)
    report.write(out, "rl_cost", found, page(found))


if __name__ == "__main__":
    app()
