"""Run DPO through TRL's `DPOTrainer` on pairs of token ids, in which tools' results are masked.

The log-likelihoods of the reference are computed once, before the training, so that no second model is kept. `dpo_pg`
takes away what the rejected answers' part of an update does against the chosen ones (arXiv 2505.23761 compares such a
variant; its rule is a reconstruction, `waver.training.preferences.did.reinforcing`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import SchedulerType
from trl import DPOConfig, DPOTrainer

from waver import job
from waver.extras import how_to_install
from waver.progress import counted
from waver.resources import MODELS
from waver.training import checkpoints
from waver.training.preferences.did import dpo_loss, reinforcing
from waver.training.preferences.likelihood import log_likelihoods, padded
from waver.training.preferences.options import DpoRun
from waver.training.preferences.pairs import Answer, Pair, as_row, read_pairs
from waver.training.tuning import trainer

RATE, BUNDLED_RATE = 1e-6, 1e-4
LOSSES = ("dpo", "dpo_pg")

console = Console()


class PairTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on rows that hold token ids, masks and the reference's log-likelihoods already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: checkpoints are dropped when the run is finished."""


class ProjectedTrainer(PairTrainer):
    """DPO-PG, in one process: the two parts of a batch's gradient are computed apart and combined."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Add the combined gradient of a batch; returns the DPO loss."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        with self.compute_loss_context_manager():
            said = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
                labels=labels,
                fused_lm_head=True,
            )
        likely = said.log_probs.sum(1).view(2, -1).T
        known = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]], 1)
        losses = dpo_loss(likely.detach(), known, self.beta)
        pull = self.beta * -torch.expm1(-losses) / (len(losses) * self.args.gradient_accumulation_steps)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        chosen = _gradient((pull * likely[:, 0]).sum(), weights, keep=True)
        rejected = _gradient((-pull * likely[:, 1]).sum(), weights, keep=False)
        for weight, step in zip(weights, reinforcing(chosen, rejected), strict=True):
            weight.grad = -step if weight.grad is None else weight.grad - step
        change = (likely.detach() - known).mean(0) * self.beta
        self._metrics["train"]["rewards/chosen"].append(float(change[0]))
        self._metrics["train"]["rewards/rejected"].append(float(change[1]))
        self._metrics["train"]["rewards/margins"].append(float(change[0] - change[1]))
        loss: Tensor = losses.mean() / self.args.gradient_accumulation_steps
        return loss


def _gradient(of: Tensor, weights: Sequence[nn.Parameter], keep: bool) -> list[Tensor]:
    found = torch.autograd.grad(of, weights, retain_graph=keep, allow_unused=True)
    pairs = zip(weights, found, strict=True)
    return [torch.zeros_like(weight) if each is None else each for weight, each in pairs]


class Noted(trainer.Watch):
    """Logs rewards and margins beside the loss."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.last = logs["loss"]
            kept = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "entropy")
            job.append_line(self.metrics, {"step": state.global_step} | {key: logs[key] for key in kept if key in logs})
        self.bar.update(self.task, completed=state.global_step, loss=self.last)


def dpo(pairs: Path, run: DpoRun, out: Path, threads: int = 1) -> dict[str, Any]:
    """Train on a file of pairs, or go on; returns the report.

    Raises:
        ValueError: what is asked for cannot be done, or `out` holds another run. OSError: a file cannot be read.
    """
    if run.loss not in LOSSES:
        raise ValueError(f"there is no loss {run.loss!r}; there are {', '.join(LOSSES)}")
    if run.schedule not in {each.value for each in SchedulerType}:
        raise ValueError(f"there is no schedule {run.schedule!r}")
    if run.rank and find_spec("peft") is None:
        raise ValueError(f"LoRA needs peft: {how_to_install('train')}")
    torch.set_num_threads(threads)
    model, tokens = checkpoints.load(run.model)
    rows = read_pairs(pairs, tokens, run.length)
    job.claim(out, asdict(run) | {"pairs": checkpoints.sha256(pairs)})
    if (done := job.read_record(out / "report.json")) is not None:
        console.print(f"done already: the model is in {out / 'model'}")
        return done
    before = likelihoods(model, rows, run.batch)
    made = _trainer(model, tokens.tokenizer, as_dataset(rows, before), run, len(rows), out)
    trainer.run(made, out, console)
    model = _merged(made.model, out) if run.rank else model
    after = likelihoods(model, rows, run.batch)
    checkpoints.save(out / "model", model, tokens, checkpoints.stored_dtype(run.model))
    report = summed_up(before, after)
    text = json.dumps(report, indent=1) + "\n"
    job.replace_file(out / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
    trainer.drop_checkpoints(out)
    console.print(
        f"Log-likelihood of chosen answers {report['chosen_change']:+.3f}, of rejected ones "
        f"{report['rejected_change']:+.3f} nats; {report['agreement']:.1%} of the pairs are told apart.",
        soft_wrap=True,
    )
    console.print(f"The model is in {out / 'model'}.", soft_wrap=True)
    return report


def likelihoods(model: PreTrainedModel, rows: Sequence[Pair], batch: int) -> Tensor:
    """Compute the log-likelihoods of chosen and rejected answers, `[N, 2]` in nats."""
    asked = [(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)]
    with counted(console) as bar:
        task = bar.add_task("reading the pairs", total=len(rows))
        found = log_likelihoods(model, asked, 2 * batch, lambda done: bar.advance(task, done // 2))
    return found.view(-1, 2)


def summed_up(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Sum up how log-likelihoods `[N, 2]` have changed. Chosen answers that come from the reference must fall."""
    change = (after - before).double()
    margin = change[:, 0] - change[:, 1]
    return {
        "pairs": len(change),
        "chosen_change": float(change[:, 0].mean()),
        "rejected_change": float(change[:, 1].mean()),
        "agreement": float((margin > 0).double().mean()),
        "alarm": bool(change[:, 0].mean() < 0 and margin.mean() <= 0),
    }


def as_dataset(rows: Sequence[Pair], known: Tensor) -> Dataset:
    """Make the dataset of a trainer, from pairs and their log-likelihoods under the reference."""
    both = zip(rows, known.tolist(), strict=True)
    return Dataset.from_list(
        [as_row(row) | {"ref_chosen_logps": one, "ref_rejected_logps": two} for row, (one, two) in both]
    )


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Make a batch as TRL has it, chosen answers above rejected ones; masked tokens are context."""
    asked = [
        (row["prompt_ids"], Answer(tuple(row[f"{side}_ids"]), tuple(row[f"{side}_mask"])))
        for side in ("chosen", "rejected")
        for row in rows
    ]
    ids, seen, counts = padded(asked)
    known = {
        key: torch.tensor([row[key] for row in rows], dtype=torch.float32)
        for key in ("ref_chosen_logps", "ref_rejected_logps")
    }
    return {"input_ids": ids, "attention_mask": seen, "completion_mask": counts} | known


def _trainer(model: PreTrainedModel, tokenizer: Any, data: Dataset, run: DpoRun, pairs: int, out: Path) -> PairTrainer:
    steps = max(1, math.ceil(run.epochs * math.ceil(math.ceil(pairs / run.batch) / run.accumulate)))
    rate = run.learning_rate
    if rate is None:
        rate = BUNDLED_RATE if Path(run.model).resolve().is_relative_to(MODELS.resolve()) else RATE
    on_gpu = torch.cuda.is_available()
    arguments = DPOConfig(
        output_dir=str(out),
        use_cpu=not on_gpu,
        bf16=on_gpu,
        per_device_train_batch_size=run.batch,
        gradient_accumulation_steps=run.accumulate,
        gradient_checkpointing=False,
        learning_rate=rate,
        lr_scheduler_type=run.schedule,
        warmup_steps=round(run.warmup * steps),
        max_steps=steps,
        max_grad_norm=1.0,
        beta=run.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        seed=run.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=run.every,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    kind = ProjectedTrainer if run.loss == "dpo_pg" else PairTrainer
    return kind(
        model,
        args=arguments,
        data_collator=collate,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Noted(out / "metrics.jsonl", console)],
        peft_config=_lora(run.rank) if run.rank else None,
    )


def _lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def _merged(adapted: Any, out: Path) -> PreTrainedModel:
    """Save the adapter, and merge it into the model."""
    adapted.eval()
    job.replace_folder(out / "adapter", adapted.save_pretrained)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged
