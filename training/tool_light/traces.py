"""Fine-tune a model on traces of tool use through TRL, with the results of tools masked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from waver.engines.tokens import TokenText
from waver.training import checkpoints
from waver.training.lines import json_lines
from waver.training.preferences.likelihood import padded
from waver.training.preferences.pairs import Answer
from waver.training.texts import IGNORED
from waver.training.tool_light.options import ToolLightRun
from waver.training.tuning import trainer

OPEN, CLOSE = "<result>", "</result>"
INSTRUCTION = (
    "Answer the question. Think first. You may write <python>an expression</python> to compute it{search}, and read "
    "what comes back between <result> and </result>. Call no more than you need. At the end write <answer>the "
    "answer</answer>.\n\n"
)


def prompt(tokens: TokenText, question: str, search: bool) -> tuple[int, ...]:
    """Encode a question with what the model must know about its tools, as the user's turn."""
    told = INSTRUCTION.format(search=" or <search>words</search> to look things up" if search else "")
    return tuple(tokens.chat([{"role": "user", "content": told + question}]))


@dataclass(frozen=True)
class Trace:
    """A way to an answer with calls and results of tools, of the training data."""

    question: str
    answer: Answer
    calls: int


def read_traces(file: Path, tokens: TokenText) -> list[Trace]:
    """Read a JSONL file of `question` and `trace`, a text with the tags of `waver.training.tool_light.chains`.

    Raises:
        ValueError: a line is not so; the message names it. OSError: the file cannot be read.
    """
    found = []
    for where, row in json_lines(file):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("question", "trace")):
            raise ValueError(f"{where}: an object is needed with `question` and `trace`")
        if not row["trace"].rstrip().endswith("</answer>"):
            raise ValueError(f"{where}: a trace ends with </answer>")
        found.append(as_trace(row["question"], row["trace"].rstrip(), tokens))
    if not found:
        raise ValueError(f"{file} holds no traces")
    return found


def as_trace(question: str, text: str, tokens: TokenText) -> Trace:
    """Encode a trace piece by piece, as a chain is put together, so that results can be told from what is learned."""
    ids: list[int] = []
    mask: list[int] = []
    calls = 0
    for own, piece in pieces(text):
        encoded = tokens.encode_plain(piece)
        ids += encoded
        mask += [int(own)] * len(encoded)
        calls += not own
    ends = tokens.eos_ids[:1]
    return Trace(question, Answer((*ids, *ends), (*mask, *[1] * len(ends))), calls)


def pieces(text: str) -> Iterator[tuple[bool, str]]:
    """Cut a trace into what the model writes (True) and results with the line breaks around them (False)."""
    while (start := text.find(OPEN)) >= 0 and (end := text.find(CLOSE, start)) >= 0:
        start -= text[:start].endswith("\n")
        end += len(CLOSE)
        end += text[end:].startswith("\n")
        if start:
            yield True, text[:start]
        yield False, text[start:end]
        text = text[end:]
    if text:
        yield True, text


def fine_tune(
    model: PreTrainedModel,
    tokens: TokenText,
    rows: Sequence[tuple[Sequence[int], Answer]],
    run: ToolLightRun,
    out: Path,
    console: Console,
) -> None:
    """Train all weights on prompts and traces, by the likelihood of the tokens that a model writes; or go on."""
    steps = max(1, math.ceil(run.epochs * math.ceil(math.ceil(len(rows) / run.batch) / run.accumulate)))
    on_gpu = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(out),
        use_cpu=not on_gpu,
        bf16=on_gpu,
        per_device_train_batch_size=run.batch,
        gradient_accumulation_steps=run.accumulate,
        gradient_checkpointing=False,
        learning_rate=run.sft_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.1 * steps),
        max_steps=steps,
        max_grad_norm=1.0,
        max_length=None,
        completion_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=run.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=max(1, steps // 4),
        save_total_limit=1,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    data = [
        {"prompt_ids": list(ids), "ids": list(each.ids), "mask": list(each.mask), "labels": []} for ids, each in rows
    ]
    made = TraceTrainer(
        model,
        args=arguments,
        data_collator=collate,
        train_dataset=Dataset.from_list(data),
        processing_class=tokens.tokenizer,
        callbacks=[trainer.Watch(out / "metrics.jsonl", console)],
    )
    trainer.run(made, out, console)
    checkpoints.save(out / "model", model, tokens, checkpoints.stored_dtype(run.model))
    trainer.drop_checkpoints(out)


class TraceTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, without its model card: checkpoints are dropped when the run is finished."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none."""


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Make a batch whose labels leave out prompts and results of tools."""
    asked = [(row["prompt_ids"], Answer(tuple(row["ids"]), tuple(row["mask"]))) for row in rows]
    ids, seen, counts = padded(asked)
    return {"input_ids": ids, "attention_mask": seen, "labels": ids.masked_fill(counts == 0, IGNORED)}
