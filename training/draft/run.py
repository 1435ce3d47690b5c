"""Run `waver train draft`: train a small model to draft for a large one, which is frozen.

The folder holds `model/` (which vLLM loads as a draft model, and `waver serve` as any other), `engine.yaml` (an engine
of the target that drafts with it), `metrics.jsonl`, and `report.json` with the acceptance before and after.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import SchedulerType

from waver import job
from waver.progress import counted
from waver.training import checkpoints
from waver.training.draft.acceptance import log_probabilities, measure
from waver.training.draft.losses import LOSSES, draft_loss
from waver.training.draft.options import DraftRun
from waver.training.texts import IGNORED, Text, padded, read_texts
from waver.training.tuning import trainer

console = Console()


class DraftTrainer(Trainer):
    """Trains a draft by its distance from a target's distributions, which are computed along and cut from gradients."""

    def __init__(
        self, draft: PreTrainedModel, target: PreTrainedModel, run: DraftRun, *given: Any, **named: Any
    ) -> None:
        super().__init__(draft, *given, **named)
        self.target, self.run = target.eval().requires_grad_(False), run

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Compute the loss of a batch of texts."""
        with torch.no_grad():
            logp = log_probabilities(self.target, inputs, self.run.temperature)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        logq = (logits[:, :-1].float() / self.run.temperature).log_softmax(-1)
        mask = (inputs["labels"][:, 1:] != IGNORED).float()
        kind = "ce" if self.state.global_step < self.run.ce_steps else self.run.loss
        return draft_loss(kind, logp, logq, inputs["input_ids"][:, 1:], mask, self.run.gamma)


def train(data: Path, held_out: Path | None, run: DraftRun, out: Path, threads: int = 1) -> dict[str, Any]:
    """Train, or go on; returns the report.

    Args:
        data: texts, best of the target's own drawing. held_out: texts to measure by; without them those of `data`.

    Raises:
        ValueError: it cannot be done like this, or `out` holds another run. OSError: a file cannot be read.
    """
    if run.loss not in LOSSES:
        raise ValueError(f"there is no loss {run.loss!r}; there are {', '.join(LOSSES)}")
    torch.set_num_threads(threads)
    target, tokens = checkpoints.load(run.model)
    draft, own = checkpoints.load(run.draft)
    if own.tokenizer.get_vocab() != tokens.tokenizer.get_vocab() or draft.config.vocab_size != target.config.vocab_size:
        raise ValueError(f"{run.draft} and {run.model} have different tokenizers: drafts could not be compared")
    texts = read_texts(data, tokens, run.length)
    measured = texts if held_out is None else read_texts(held_out, tokens, run.length)
    files = {name: file and checkpoints.sha256(file) for name, file in (("data", data), ("held_out", held_out))}
    job.claim(out, asdict(run) | files)
    if (done := job.read_record(out / "report.json")) is not None:
        console.print(f"done already: the model is in {out / 'model'}")
        return done
    report: dict[str, Any] = {"loss": run.loss, "gamma": run.gamma, "before": _measured(target, draft, measured, run)}
    trainer.run(_trainer(draft, target, texts, run, out), out, console)
    report["after"] = _measured(target, draft, measured, run)
    checkpoints.save(out / "model", draft, tokens, checkpoints.stored_dtype(run.draft))
    write(out / "engine.yaml", yaml.safe_dump(engine(run.model, out / "model", run.gamma), sort_keys=False))
    write(out / "report.json", json.dumps(report, indent=1) + "\n")
    trainer.drop_checkpoints(out)
    for name in ("before", "after"):
        told = report[name]
        console.print(
            f"{name}: {told['sampled']:.1%} of sampled drafts accepted, {told['greedy']:.1%} of greedy ones; "
            f"{1 + told['accepted']:.2f} tokens a round of {run.gamma}",
            soft_wrap=True,
        )
    console.print(
        f"The draft model is in {out / 'model'}, an engine that uses it in {out / 'engine.yaml'}.", soft_wrap=True
    )
    return report


def engine(target: str, draft: Path, gamma: int) -> dict[str, Any]:
    """Return the configuration of a vLLM engine that samples its drafts; by default vLLM's are greedy, whose acceptance
    the target's entropy bounds."""
    speculation = {
        "method": "draft_model",
        "model": str(draft.resolve()),
        "num_speculative_tokens": gamma,
        "draft_sample_method": "probabilistic",
    }
    known = str(Path(target).resolve()) if Path(target).is_dir() else target
    return {"engines": {"large": {"backend": "vllm", "model": known, "args": {"speculative_config": speculation}}}}


def _measured(target: PreTrainedModel, draft: PreTrainedModel, texts: Sequence[Text], run: DraftRun) -> dict[str, Any]:
    with counted(console) as bar:
        task = bar.add_task("measuring acceptance", total=len(texts))
        found = measure(
            target, draft, texts, run.gamma, run.temperature, run.batch, lambda rows: bar.advance(task, rows)
        )
    return asdict(found)


def draft_arguments(run: DraftRun, texts: int, out: Path) -> TrainingArguments:
    """Return the arguments of a training: one pass over the texts unless the run says otherwise."""
    steps = run.steps or -(-texts // run.batch)
    arguments = trainer.arguments(out, trainer.Schedule(steps, run.batch, run.learning_rate, run.every, run.seed))
    arguments.lr_scheduler_type = SchedulerType.CONSTANT_WITH_WARMUP
    arguments.warmup_steps = round(run.warmup * steps)
    return arguments


def _trainer(
    draft: PreTrainedModel, target: PreTrainedModel, texts: Sequence[Text], run: DraftRun, out: Path
) -> DraftTrainer:
    return DraftTrainer(
        draft,
        target,
        run,
        args=draft_arguments(run, len(texts), out),
        data_collator=lambda rows: padded([row["value"] for row in rows]),
        train_dataset=trainer.as_rows(texts),
        callbacks=[trainer.Watch(out / "metrics.jsonl", console)],
    )


def write(file: Path, text: str) -> None:
    job.replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))
