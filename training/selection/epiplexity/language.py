"""Code texts with causal language models: logits of what is learned, samples behind a context, small fresh models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from waver.training.texts import IGNORED, Text, padded

Rows = dict[str, torch.Tensor]
BASE_WIDTH = 64
"""Width at which the learning rate holds; that of a matrix falls with its inputs (muP)."""


class TextCoding:
    """Codes the learned tokens of padded texts (`waver.training.texts.padded`)."""

    def logits(self, model: nn.Module, batch: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        labels = batch["labels"][:, 1:]
        return logits[:, :-1][labels != IGNORED], labels[labels != IGNORED]

    @torch.no_grad()
    def redraw(self, model: nn.Module, batch: Rows, generator: torch.Generator) -> Rows:
        ids, labels = batch["input_ids"].clone(), batch["labels"].clone()
        past: Any = None
        for place in range(1, ids.shape[1]):
            out = model(input_ids=ids[:, place - 1 : place], past_key_values=past, use_cache=True)
            past = out.past_key_values
            coded = labels[:, place] != IGNORED
            if coded.any():
                drawn = torch.multinomial(out.logits[:, -1].float().softmax(-1).cpu(), 1, generator=generator)[:, 0]
                ids[:, place] = torch.where(coded, drawn.to(ids.device), ids[:, place])
        labels = torch.where(labels != IGNORED, ids, labels)
        return {**batch, "input_ids": ids, "labels": labels}


def batches(texts: Sequence[Text], size: int, device: torch.device) -> list[Rows]:
    """Pad texts in batches of `size`, in order."""
    made = (padded(texts[place : place + size]) for place in range(0, len(texts), size))
    return [{name: value.to(device) for name, value in each.items()} for each in made]


def small_config(width: int, depth: int, vocabulary: int, length: int) -> LlamaConfig:
    """Return the shape of a small Llama with heads of 16 to 32 dimensions."""
    heads = max(1, width // 32)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=length,
        tie_word_embeddings=False,
    )


def fresh(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Make a model of this shape with random weights; its last layer is zero, so that it starts at no preference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    output = model.get_output_embeddings()
    if output is not None and not config.tie_word_embeddings:
        nn.init.zeros_(output.weight)
    return model


def scaled_adam(rate: float) -> Any:
    """Return a maker of Adam (0.9, 0.95) without weight decay: a matrix inside a fresh model has `rate * 64 / inputs`,
    embeddings and vectors have `rate`."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        ends = {id(weight) for weight in _embeddings(model)}
        groups: dict[float, list[nn.Parameter]] = {}
        for weight in model.parameters():
            hidden = weight.ndim == 2 and id(weight) not in ends
            groups.setdefault(rate * BASE_WIDTH / weight.shape[1] if hidden else rate, []).append(weight)
        return torch.optim.Adam([{"params": each, "lr": lr} for lr, each in groups.items()], betas=(0.9, 0.95))

    return make


def plain_adam(rate: float) -> Any:
    """Return a maker of Adam (0.9, 0.95) with one rate for all weights, for a trained model."""
    return lambda model: torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.95))


def _embeddings(model: nn.Module) -> Iterable[nn.Parameter]:
    embedded = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    return embedded.parameters() if embedded is not None else ()
