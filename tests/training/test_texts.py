"""Texts to train on: which tokens are learned, padding, chunks, and the mean loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from waver.engines.tokens import TokenText
from waver.training.texts import IGNORED, Text, as_text, mean_loss, padded, read_texts


@pytest.fixture(scope="module")
def tokens(tiny_pair: dict[str, Path]) -> TokenText:
    return TokenText.load(str(tiny_pair["small"]))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What is 1 + 1?", "completion": " Two."},
        {"question": "What is 1 + 1?", "answer": "Two."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Two."}]},
    ],
)
def test_what_comes_before_is_context(row: dict[str, Any], tokens: TokenText) -> None:
    text = as_text(row, tokens)
    assert tokens.decode(text.ids[text.start :]).strip() == "Two."
    assert text.start > 1
    if "prompt" not in row:  # the template's line break behind the end of the turn is not learned
        assert text.ids[-1] in tokens.eos_ids


def test_a_text_is_learned_whole_and_cut_into_chunks(tmp_path: Path, tokens: TokenText) -> None:
    (file := tmp_path / "a.jsonl").write_text(json.dumps({"text": "The river of Talvek is the Sorn. " * 4}) + "\n\n")
    (whole,) = read_texts(file, tokens, 1000)
    assert whole.start == 1
    (cut,) = read_texts(file, tokens, 10)
    assert cut.ids == whole.ids[:10]
    parts = read_texts(file, tokens, 10, chunks=True)
    assert sum((part.ids for part in parts), ()) == whole.ids[: sum(len(part.ids) for part in parts)]
    assert len(whole.ids) - sum(len(part.ids) for part in parts) <= 1  # a token alone has nothing to predict


def test_a_batch_learns_only_what_is_to_be_learned() -> None:
    batch = padded([Text((5, 6, 7), 1), Text((8, 9, 10, 11), 3)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED], [IGNORED, IGNORED, IGNORED, 11]]


def test_the_mean_loss_counts_tokens_not_texts(tiny_pair: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_pair["small"])
    texts = [Text(tuple(range(5, 25)), 1), Text((8, 9, 10, 11), 3), Text((40, 41), 1)]
    sums = []
    for text in texts:
        with torch.no_grad():
            logs = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        sums += [-float(logs[place - 1, text.ids[place]]) for place in range(text.start, len(text.ids))]
    assert mean_loss(model, texts, batch=2) == pytest.approx(sum(sums) / len(sums), rel=1e-5)
