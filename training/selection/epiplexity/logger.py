"""Log the information that a training run takes from its data, as a callback of transformers' `Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from waver.job import append_line, read_lines
from waver.training.selection.epiplexity.lengths import area
from waver.training.texts import IGNORED


class EpiplexityLogger(TrainerCallback):
    """Writes a line for every logged loss of the first epoch: `step`, `tokens` so far, `loss` before the update (nats),
    and `s_area`, the area in bits between the curve and its latest value (arXiv 2601.03220, section 4.1).

    That area is a shortcut for i.i.d. data at a constant learning rate, and unreliable with small batches; the lines
    carry `reliable: false`. `waver data epiplexity` measures the exact one. Later epochs are not logged: their losses
    are no code lengths. A run that goes on from a checkpoint goes on with the lines up to it.

    Args:
        file: JSONL.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines: list[dict[str, Any]] = []
        self._tokens = 0
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._lines = [line for line in read_lines(self.file) if line["step"] <= state.global_step]
        self.file.unlink(missing_ok=True)
        for line in self._lines:
            append_line(self.file, line)
        self._tokens = self._lines[-1]["tokens"] if self._lines else 0
        self._hook = given["model"].register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: torch.nn.Module, args: Any, given: dict[str, Any]) -> None:
        labels = given.get("labels")
        if model.training and labels is not None:
            self._tokens += int((labels[..., 1:] != IGNORED).sum())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs or (state.epoch or 0.0) > 1.0:
            return
        losses = [*(line["loss"] for line in self._lines), logs["loss"]]
        tokens = [*(line["tokens"] for line in self._lines), self._tokens]
        line = {"step": state.global_step, "tokens": self._tokens, "loss": logs["loss"]}
        line |= {"s_area": area(losses, tokens), "reliable": False}
        self._lines.append(line)
        append_line(self.file, line)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
