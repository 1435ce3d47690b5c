"""Run `waver train draft --heads`: train prediction heads on a frozen model.

The folder holds `heads/`, `metrics.jsonl`, and `report.json` with each head's acceptance before and after.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import Trainer

from waver import job
from waver.progress import counted
from waver.training import checkpoints
from waver.training.draft.heads import Heads, WithHeads, heads_loss, whole
from waver.training.draft.losses import LOSSES, acceptance, accepted_length, greedy_acceptance
from waver.training.draft.options import DraftRun
from waver.training.draft.run import draft_arguments, write
from waver.training.texts import IGNORED, Text, padded, read_texts
from waver.training.tuning import trainer

console = Console()


class HeadsTrainer(Trainer):
    """Trains heads by their distance from the distributions of the model that they sit on."""

    def __init__(self, model: WithHeads, run: DraftRun, **named: Any) -> None:
        super().__init__(model, **named)
        self.run = run

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Compute the loss of a batch of texts."""
        ids = inputs["input_ids"]
        logp, logq = model(self.run.temperature, input_ids=ids, attention_mask=inputs["attention_mask"])
        kind = "ce" if self.state.global_step < self.run.ce_steps else self.run.loss
        return heads_loss(kind, logp, logq, ids, whole(inputs["labels"] != IGNORED, self.run.gamma))


def train_heads(data: Path, held_out: Path | None, run: DraftRun, out: Path, threads: int = 1) -> dict[str, Any]:
    """Train, or go on; returns the report.

    Raises:
        ValueError: it cannot be done like this, or `out` holds another run. OSError: a file cannot be read.
    """
    if run.loss not in LOSSES:
        raise ValueError(f"there is no loss {run.loss!r}; there are {', '.join(LOSSES)}")
    torch.set_num_threads(threads)
    model, tokens = checkpoints.load(run.model)
    texts = _long_enough(read_texts(data, tokens, run.length), run.gamma, data)
    measured = (
        texts if held_out is None else _long_enough(read_texts(held_out, tokens, run.length), run.gamma, held_out)
    )
    files = {name: file and checkpoints.sha256(file) for name, file in (("data", data), ("held_out", held_out))}
    job.claim(out, asdict(run) | files)
    if (done := job.read_record(out / "report.json")) is not None:
        console.print(f"done already: the heads are in {out / 'heads'}")
        return done
    torch.manual_seed(run.seed)
    heads = Heads(model.config.get_text_config().hidden_size, run.gamma).to(model.device)
    both = WithHeads(model, heads)
    report: dict[str, Any] = {"loss": run.loss, "gamma": run.gamma, "before": measure_heads(both, measured, run)}
    made = HeadsTrainer(
        both,
        run,
        args=draft_arguments(run, len(texts), out),
        data_collator=lambda rows: padded([row["value"] for row in rows]),
        train_dataset=trainer.as_rows(texts),
        callbacks=[trainer.Watch(out / "metrics.jsonl", console)],
    )
    trainer.run(made, out, console)
    report["after"] = measure_heads(both, measured, run)
    heads.save(out / "heads")
    write(out / "report.json", json.dumps(report, indent=1) + "\n")
    trainer.drop_checkpoints(out)
    for name in ("before", "after"):
        told = report[name]
        shown = ", ".join(f"{each:.1%}" for each in told["sampled"])
        console.print(f"{name}: {shown} accepted by head; {1 + told['accepted']:.2f} tokens a round of {run.gamma}")
    console.print(f"The heads are in {out / 'heads'}.", soft_wrap=True)
    return report


@torch.inference_mode()
def measure_heads(both: WithHeads, texts: Sequence[Text], run: DraftRun) -> dict[str, Any]:
    """Measure exactly what the model accepts of its heads' drafts: means by head, and of accepted drafts a round."""
    both.eval()
    rows = []
    with counted(console) as bar:
        task = bar.add_task("measuring acceptance", total=len(texts))
        for place in range(0, len(texts), run.batch):
            made = padded(texts[place : place + run.batch])
            inputs = {key: made[key].to(both.frozen.device) for key in ("input_ids", "attention_mask")}
            logp, logq = both(run.temperature, **inputs)
            starts = whole(made["labels"] != IGNORED, run.gamma)
            p, q = logp.exp(), logq.exp()
            rows.append(torch.stack([acceptance(p, q).cpu()[starts], greedy_acceptance(p, q).cpu()[starts]], -1))
            bar.advance(task, len(made["labels"]))
    table = torch.cat(rows).double()
    return {
        "sampled": table[..., 0].mean(0).tolist(),
        "greedy": table[..., 1].mean(0).tolist(),
        "accepted": float(accepted_length(table[..., 0]).mean()),
        "greedy_accepted": float(accepted_length(table[..., 1]).mean()),
        "starts": len(table),
    }


def _long_enough(texts: Sequence[Text], gamma: int, file: Path) -> list[Text]:
    """Keep the texts in which heads can draft.

    Raises:
        ValueError: there are none.
    """
    kept = [text for text in texts if len(text.ids) - max(text.start, 2) >= gamma]
    if not kept:
        raise ValueError(f"{file}: no text has {gamma} learned tokens behind its second")
    return kept
