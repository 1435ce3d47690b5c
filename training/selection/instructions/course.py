"""Fine-tune on texts with a learning rate that rises for 3 % of the steps and falls to 0, as the paper trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from waver.training.texts import Text, padded
from waver.training.tuning import trainer

MICRO = 8
"""Most examples in one pass; the rest of a batch is accumulated."""


@dataclass(frozen=True)
class Course:
    """Passes over the texts, the highest learning rate, and examples a step."""

    epochs: int
    rate: float
    batch: int
    seed: int

    def steps(self, texts: int) -> int:
        """Return the steps of one epoch."""
        return math.ceil(math.ceil(texts / self.micro) / (self.batch // self.micro))

    @property
    def micro(self) -> int:
        """Examples in one pass, a divisor of the batch."""
        return next(size for size in range(min(MICRO, self.batch), 0, -1) if self.batch % size == 0)

    def warmup(self, texts: int) -> int:
        """Return the steps over which the rate rises."""
        return math.ceil(0.03 * self.epochs * self.steps(texts))


def train(
    model: nn.Module,
    texts: Sequence[Text],
    course: Course,
    out: Path,
    console: Console,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train to the end, from the checkpoint after the last epoch where a stopped run left one."""
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(out),
        use_cpu=not on_gpu,
        bf16=on_gpu,
        per_device_train_batch_size=course.micro,
        gradient_accumulation_steps=course.batch // course.micro,
        num_train_epochs=course.epochs,
        learning_rate=course.rate,
        lr_scheduler_type="linear",
        warmup_steps=course.warmup(len(texts)),
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=course.seed,
        logging_steps=1,
        save_strategy="epoch",
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        report_to="none",
        disable_tqdm=True,
    )
    rows: Any = trainer.as_rows(texts)
    made = Trainer(
        model,
        arguments,
        data_collator=lambda found: padded([row["value"] for row in found]),
        train_dataset=rows,
        callbacks=[trainer.Watch(out / "metrics.jsonl", console), *callbacks],
    )
    trainer.run(made, out, console)
    trainer.drop_checkpoints(out)
