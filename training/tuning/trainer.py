"""Run transformers' `Trainer` over texts: checkpoints to go on from, a progress bar, `metrics.jsonl`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from waver.job import append_line, read_lines

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class Schedule:
    """The course of a training: optimizer steps, texts in each, learning rate, and steps between checkpoints."""

    steps: int
    batch: int
    learning_rate: float
    every: int
    seed: int
    weight_decay: float = 0.0


def arguments(out: Path, schedule: Schedule) -> TrainingArguments:
    """Return transformers' arguments: AdamW at a constant rate, gradients clipped at 1."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(out),
        use_cpu=not on_gpu,
        bf16=on_gpu,
        per_device_train_batch_size=schedule.batch,
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        lr_scheduler_type="constant",
        max_steps=schedule.steps,
        max_grad_norm=1.0,
        seed=schedule.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=schedule.every,
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        report_to="none",
        disable_tqdm=True,
    )


class Watch(TrainerCallback):
    """Shows the progress, writes each step to a JSONL file, and stops the training where it is told to.

    Args:
        enough: called with the step after each step; what it returns is logged, and `True` under `stop` ends the
            training.
    """

    def __init__(self, metrics: Path, console: Console, enough: Callable[[int], dict[str, Any]] | None = None) -> None:
        self.metrics, self.enough, self.last = metrics, enough, float("nan")
        self.bar = Progress(*COLUMNS, TextColumn("loss {task.fields[loss]:.3f}"), console=console)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the lines of steps that a stopped run had taken beyond its last checkpoint."""
        kept = [line for line in read_lines(self.metrics) if line["step"] <= state.global_step]
        self.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, loss=self.last)
        self.bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.last = logs["loss"]
            append_line(self.metrics, {"step": state.global_step, "loss": self.last})
        self.bar.update(self.task, completed=state.global_step, loss=self.last)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.enough is None:
            return
        found = self.enough(state.global_step)
        if found:
            append_line(self.metrics, {"step": state.global_step, **found})
            control.should_training_stop = bool(found.get("stop"))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.stop()


def last_checkpoint(out: Path) -> Path | None:
    """Return the newest checkpoint that is whole; half-written ones, where a run was killed, are removed."""
    found = sorted(out.glob("checkpoint-*"), key=lambda each: int(each.name.rpartition("-")[2]))
    whole = [each for each in found if (each / "trainer_state.json").exists()]
    for each in found:
        if each not in whole:
            shutil.rmtree(each)
    return whole[-1] if whole else None


def run(trainer: Trainer, out: Path, console: Console) -> None:
    """Train to the end, from the last checkpoint where there is one."""
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        console.print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def drop_checkpoints(out: Path) -> None:
    """Remove the checkpoints of a run that is finished."""
    for each in out.glob("checkpoint-*"):
        shutil.rmtree(each)


def as_rows(values: Sequence[Any]) -> list[dict[str, Any]]:
    """Wrap values as the rows that a `Trainer` draws its batches from."""
    return [{"value": value} for value in values]
