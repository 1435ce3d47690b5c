"""Train with what goes beyond a loss on tokens: a loss on attention rows, and activations that are learned faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from waver.engines.attention import each_attention
from waver.entropy.attention import head_fractions
from waver.training.texts import Text, padded
from waver.training.tuning.attention_entropy import EntropyRegulariser
from waver.training.tuning.options import TuneRun

POINTS = "attention_points"
"""The name of the set points in a model while it is trained, so that checkpoints have them."""
READ = 16
"""Texts on which attention is measured."""


class GuidedTrainer(Trainer):
    """Adds `guide` times the loss of a model's `EntropyRegulariser` to the loss on tokens, in training alone."""

    def __init__(self, *given: Any, guide: float, **named: Any) -> None:
        super().__init__(*given, **named)
        self.guide = guide

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        output = model(**inputs, use_cache=False, output_attentions=True)
        points: EntropyRegulariser = getattr(self.accelerator.unwrap_model(model), POINTS)
        return output.loss + self.guide * points(output.attentions, inputs["attention_mask"])


def attach(model: PreTrainedModel, run: TuneRun) -> EntropyRegulariser:
    """Give a model set points for its heads' entropies, that are trained and saved with it until `detach`.

    Raises:
        ValueError: the model does not say how many heads it has, or cannot hand out its attention.
    """
    config = model.config.get_text_config()
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if layers is None or heads is None:
        raise ValueError("--guide needs a model with ordinary attention heads")
    try:
        model.set_attn_implementation("eager")
    except ValueError as error:
        raise ValueError(f"--guide needs a model that hands out its attention: {error}") from error
    points = EntropyRegulariser(layers, heads, run.length, run.tolerance).to(model.device)
    model.add_module(POINTS, points)
    return points


def detach(model: PreTrainedModel) -> None:
    """Take the set points out again."""
    delattr(model, POINTS)


@torch.inference_mode()
def layer_fractions(model: PreTrainedModel, texts: Sequence[Text]) -> list[float]:
    """Return by layer the mean over heads of `head_fractions` on texts: 0 one place, 1 everywhere alike."""
    made = {name: value.to(model.device) for name, value in padded(texts[:READ]).items() if name != "labels"}
    found: list[float] = []
    with each_attention(
        model, lambda weights: found.append(float(head_fractions(weights, made["attention_mask"]).mean()))
    ):
        model.eval()(**made, use_cache=False)
    return found
