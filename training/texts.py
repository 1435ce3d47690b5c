"""Read texts to train on: their tokens, and from which one on they are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from waver.engines.tokens import TokenText
from waver.training.lines import json_lines

FORMS = "`text`, `prompt` and `completion`, `question` and `answer`, or `messages`"
IGNORED = -100
"""Label of tokens that are not learned, as transformers has it."""


@dataclass(frozen=True)
class Text:
    """Tokens of which those from `start` on are learned; what stands before is context."""

    ids: tuple[int, ...]
    start: int

    @property
    def learned(self) -> int:
        return len(self.ids) - self.start


def read_texts(file: Path, tokens: TokenText, length: int, chunks: bool = False) -> list[Text]:
    """Read a JSONL file. A `text` is learned whole, of a `prompt` with its `completion` and a `question` with its
    `answer` (a turn of the chat template) the second, of `messages` the last, the assistant's.

    Args:
        length: the most tokens of a text; the rest is cut off. chunks: of a `text` it becomes texts of their own.

    Raises:
        ValueError: a line is none of that, or nothing of it is left to learn; the message names it.
        OSError: the file cannot be read.
    """
    found = []
    for where, row in json_lines(file):
        try:
            text = as_text(row, tokens)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if min(len(text.ids), length) <= text.start:
            raise ValueError(f"{where}: there is nothing to learn within {length} tokens")
        found += _cut(text, length, chunks)
    if not found:
        raise ValueError(f"{file} holds no texts")
    return found


def _cut(text: Text, length: int, chunks: bool) -> list[Text]:
    if not chunks or text.start > 1:
        return [Text(text.ids[:length], text.start)]
    parts = [text.ids[place : place + length] for place in range(0, len(text.ids), length)]
    return [Text(part, 1) for part in parts if len(part) > 1]


def as_text(row: Any, tokens: TokenText) -> Text:
    """Encode one row of a file of texts.

    Raises:
        ValueError: it has none of the forms.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"an object is needed with {FORMS}")
    if isinstance(row.get("text"), str):
        return Text(tuple(tokens.encode(row["text"])), 1)
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        context = tokens.encode(row["prompt"])
        return _split(context, [*context, *tokens.encode(row["completion"], add_special_tokens=False)])
    messages = row.get("messages")
    if isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < 2:
        raise ValueError(f"an object is needed with {FORMS}")
    if not all(isinstance(each, Mapping) and "role" in each and "content" in each for each in messages):
        raise ValueError("`messages` are objects with `role` and `content`")
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last of `messages` must be the assistant's")
    context = tokens.chat(messages[:-1])
    return _split(context, _to_the_end(tokens.chat(messages, add_generation_prompt=False), tokens))


def _to_the_end(whole: list[int], tokens: TokenText) -> list[int]:
    """Cut off what a chat template puts behind the token that ends a turn, which no model ever has to predict."""
    ends = [place for place, token in enumerate(whole) if token in tokens.eos_ids]
    rest = whole[ends[-1] + 1 :] if ends else []
    return whole[: ends[-1] + 1] if rest and not tokens.decode(rest).strip() else whole


def _split(context: Sequence[int], whole: Sequence[int]) -> Text:
    if list(whole[: len(context)]) != list(context):
        raise ValueError("the chat template does not put an answer behind its question unchanged")
    return Text(tuple(whole), max(1, len(context)))


def padded(texts: Sequence[Text]) -> dict[str, torch.Tensor]:
    """Make a batch, padded on the right: `input_ids`, `attention_mask` and `labels`, each `[texts, longest]`."""
    width = max(len(text.ids) for text in texts)
    shape = len(texts), width
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, text in enumerate(texts):
        end = len(text.ids)
        ids[row, :end] = torch.tensor(text.ids)
        mask[row, :end] = 1
        labels[row, text.start : end] = ids[row, text.start : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, texts: Sequence[Text], batch: int = 8) -> float:
    """Compute the mean cross-entropy of the learned tokens, in nats."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for place in range(0, len(texts), batch):
            made = {name: value.to(model.device) for name, value in padded(texts[place : place + batch]).items()}
            labels = made.pop("labels")[:, 1:]
            logits = model(**made, use_cache=False).logits[:, :-1].float()
            flat = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
            total, count = total + float(flat), count + int((labels != IGNORED).sum())
    finally:
        model.train(was_training)
    return total / count
