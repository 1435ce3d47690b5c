"""Take the steps of a training run that keeps its own state, with a progress bar and checkpoints."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from waver import job

CHECKPOINT_SECONDS = 120.0


class Stepping(Protocol):
    """A run on its way."""

    taken: int
    """Steps so far."""
    seconds: float
    """Time that they took."""

    def step(self) -> float:
        """Take one step and return its loss."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        ...


def take_steps(run: Stepping, name: str, steps: int, checkpoint: Path, console: Console) -> None:
    """Take the steps that are left, with a progress bar (or a line every hundred steps where nobody watches), and write
    a checkpoint every two minutes and when it is stopped."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as bar:
        task = bar.add_task(name, total=steps, completed=run.taken, loss=float("nan"))
        saved = time.monotonic()
        try:
            while run.taken < steps:
                loss = run.step()
                bar.update(task, completed=run.taken, loss=loss)
                if not console.is_terminal and run.taken % 100 == 0:
                    console.print(f"{name}: step {run.taken} of {steps}, loss {loss:.3f}, {run.seconds:.0f} s")
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    job.replace_file(checkpoint, partial(torch.save, run.state()))
                    saved = time.monotonic()
        except KeyboardInterrupt:
            job.replace_file(checkpoint, partial(torch.save, run.state()))
            console.print(f"Stopped after step {run.taken}; the same command goes on from here.")
            raise
