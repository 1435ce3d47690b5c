"""Similarity by entailment: a small model with a meaning, how pairs become matrices, and what cannot be loaded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from waver.engines.base import Unsupported
from waver.policies.services import Services
from waver.policies.uncertainty.entailment import Entailment
from waver.policies.uncertainty.similarity import among, between, support

WORDS = ("paris", "london", "the", "capital", "is", "big")
LABELS = {0: "contradiction", 1: "ENTAILMENT", 2: "neutral"}


def save(folder: Path, labels: dict[int, str] = LABELS) -> Path:
    """Write a tiny model with random weights and its tokenizer."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, id2label=labels, initializer_range=0.6,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Entailment:
    return Entailment.load(str(save(tmp_path_factory.mktemp("nli") / "tiny")))


class Known(Entailment):
    """Says that a text follows from each that holds all of its words; `asked` holds the pairs."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def probabilities(self, pairs: Sequence[tuple[str, str]]) -> Any:
        self.asked += pairs
        return np.array([float(set(b.split()) <= set(a.split())) for a, b in pairs])


def test_the_class_of_entailment_is_read(model: Entailment, tmp_path: Path) -> None:
    pairs = [("paris is big", "london"), ("the capital", "is paris"), ("paris " * 30, "big " * 30)]
    found = model.read(pairs)
    folder = save(tmp_path / "same")
    plain = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    for (a, b), p in zip(pairs, found, strict=True):
        given = tokenizer(a, b, return_tensors="pt", truncation=True, max_length=16)
        with torch.inference_mode():
            assert p == pytest.approx(float(plain(**given).logits.softmax(-1)[0, 1]), abs=1e-5)


async def test_both_directions_count_alike(model: Entailment) -> None:
    services = Services({}, entailment=model)
    texts = ["paris is big", "the capital", "paris is big"]
    a = await among(texts, "nli", services)
    forth, back = model.read([(texts[0], texts[1]), (texts[1], texts[0])])
    assert a[0, 1] == a[1, 0] == pytest.approx((forth + back) / 2)
    assert a.diagonal().tolist() == [1, 1, 1]
    assert a[0, 2] == 1, "equal texts are alike"
    assert forth != pytest.approx(back)


async def test_support_has_a_direction() -> None:
    known = Known()
    services = Services({}, entailment=known)
    found = await support(["paris is big. london", "paris is big and london"], "nli", services)
    assert found[0, 1] == 1, "both sentences follow from the second answer"
    assert found[1, 0] == 0
    assert len(set(known.asked)) == len(known.asked), "no pair is read twice"
    assert (await between(["a b"], ["a"], "nli", services)).tolist() == [[0.5]]


async def test_who_leaves_ends_the_reading(model: Entailment, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, read = threading.Event(), []
    own = model._model

    def slowly(**given: Any) -> Any:
        begun.set()
        read.append(len(given["input_ids"]))
        return own(**given)

    monkeypatch.setattr(model, "_model", slowly)
    pairs = [("paris is big", f"london {'the ' * i}") for i in range(20000)]
    reading = asyncio.create_task(model.probabilities(pairs))
    await asyncio.to_thread(begun.wait, 30)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    there = len(read)
    await asyncio.sleep(0.05)
    assert len(read) == there < 1000


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of its classes should be called entailment; they are good, bad"):
        Entailment.load(str(save(tmp_path / "other", {0: "good", 1: "bad"})))
    with pytest.raises(ValueError, match="is no folder"):
        Entailment.load(str(tmp_path / "none"))


async def test_without_a_model_it_is_said() -> None:
    with pytest.raises(Unsupported, match="no model of entailment here"):
        await between(["a"], ["b"], "nli", Services({}))
