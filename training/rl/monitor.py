"""Follow a run: a progress bar, `metrics.jsonl`, and a plot of reward, entropy and length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from waver.job import append_line, read_lines

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
CURVES = (("reward", "reward"), ("entropy", "entropy of a token, nats"), ("length", "length of an answer, tokens"))


class Monitor(TrainerCallback):
    """Follows a trainer. `updates` is how many of its steps make one of ours."""

    def __init__(self, metrics: Path, updates: int, console: Console) -> None:
        self.metrics, self.updates, self.console = metrics, updates, console
        words = TextColumn("reward {task.fields[reward]:.3f}, entropy {task.fields[entropy]:.3f}")
        self.bar = Progress(*COLUMNS, words, console=console)
        self.last: dict[str, Any] = {"reward": float("nan"), "entropy": float("nan")}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the lines of steps that a stopped run had taken beyond its last checkpoint."""
        done = state.global_step // self.updates
        kept = [line for line in read_lines(self.metrics) if line["step"] <= done]
        self.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.task = self.bar.add_task("training", total=state.max_steps // self.updates, completed=done, **self.last)
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(self.task, completed=state.global_step // self.updates, **self.last)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        self.last |= {name: logs[name] for name in self.last if logs.get(name) is not None}
        line = {"step": -(-state.global_step // self.updates), "update": state.global_step, **logs}
        append_line(self.metrics, line)
        if not self.console.is_terminal and "eval_reward" in logs:
            self.console.print(f"step {line['step']}: held-out reward {logs['eval_reward']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.stop()


def plot(metrics: Path, out: Path) -> None:
    """Reward (with the held-out one), entropy and length by step, as one picture."""
    from matplotlib.figure import Figure

    lines = read_lines(metrics)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 3), CURVES, strict=True):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        axes.plot(*zip(*points, strict=True), label="training") if points else None
        held = [(line["step"], line["eval_reward"]) for line in lines if line.get("eval_reward") is not None]
        if name == "reward" and held:
            axes.plot(*zip(*held, strict=True), "o-", label="held out")
            axes.legend()
        axes.set(xlabel="step", ylabel=label)
    figure.savefig(out)
