"""Run a causal language model over rollouts: log-probabilities, entropies, and the measures of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from waver.entropy import shannon_entropy
from waver.training.rl.composition import RecipeError
from waver.training.rl.method import Measure
from waver.training.rl.recipe import Recipe


@dataclass(frozen=True)
class ForwardPass:
    """Of the response tokens, `[B, T]` each; nats, of logits divided by the temperature."""

    logprob: torch.Tensor
    entropy: torch.Tensor
    measures: dict[str, torch.Tensor] = field(default_factory=dict)


def needs_logits(recipe: Recipe) -> bool:
    """Tell whether log-probabilities and entropies are not enough for its measures."""
    return any(not _is_entropy(measure) for measure in recipe.measures)


def _is_entropy(measure: Measure) -> bool:
    return measure.source == "logits" and measure.of is shannon_entropy


def from_entropy(recipe: Recipe, logprob: torch.Tensor, entropy: torch.Tensor, *, live: bool) -> ForwardPass:
    """Make the pass of a recipe that needs no logits: its measures are entropies, which trainers compute anyway."""
    wanted = {m.name: entropy for m in recipe.measures if (m.live if live else m.old)}
    return ForwardPass(logprob, entropy, wanted)


def check_attention(model: Any, recipe: Recipe) -> None:
    """Check that the model gives the attention weights that the recipe measures.

    Raises:
        RecipeError: it computes attention without weights, or has no such layer.
    """
    for measure in recipe.measures:
        if measure.source != "attention":
            continue
        if model.config._attn_implementation != "eager":
            raise RecipeError(
                f"{measure.name} is measured on attention weights, and {model.config._attn_implementation!r} attention "
                'does not keep them: load the model with attn_implementation="eager"'
            )
        layers = model.config.get_text_config().num_hidden_layers
        if measure.layer is not None and not -layers <= measure.layer < layers:
            raise RecipeError(f"{measure.name} is measured on layer {measure.layer}; the model has {layers} layers")


def forward(
    model: Any,
    ids: torch.Tensor,
    attention_mask: torch.Tensor,
    width: int,
    recipe: Recipe,
    *,
    temperature: float = 1.0,
    live: bool,
) -> ForwardPass:
    """Run one forward pass that keeps the logits of the last `width` tokens.

    Args:
        ids, attention_mask: `[B, prompt + T]`, prompts padded on the left and responses on the right.
        width: T. live: in an update, with gradient; else without.
    """
    seeing = any(m.source == "attention" and (m.live if live else m.old) for m in recipe.measures)
    with torch.set_grad_enabled(live and torch.is_grad_enabled()):
        out = model(
            input_ids=ids,
            attention_mask=attention_mask,
            logits_to_keep=width + 1,
            output_attentions=seeing,
            use_cache=False,
        )
        logits = out.logits[:, -width - 1 : -1].float() / temperature
        logprob = logits.log_softmax(-1).gather(-1, ids[:, -width:].unsqueeze(-1)).squeeze(-1)
        measures = recipe.measured(logits, live=live)
        if seeing:
            measures |= _attention(out.attentions, attention_mask, width, recipe, live)
        entropy = measures["entropy"] if live and "entropy" in measures else shannon_entropy(logits.detach())
        return ForwardPass(logprob, entropy, measures)


def _attention(
    layers: tuple[torch.Tensor, ...], attention_mask: torch.Tensor, width: int, recipe: Recipe, live: bool
) -> dict[str, torch.Tensor]:
    """Return attention measures of the positions that predict the last `width` tokens."""
    length = attention_mask.size(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    visible = (causal & attention_mask.bool().unsqueeze(1)).unsqueeze(1)[:, :, -width - 1 : -1]
    found = {}
    for measure in recipe.measures:
        if measure.source == "attention" and (measure.live if live else measure.old):
            layer = len(layers) // 2 if measure.layer is None else measure.layer
            found[measure.name] = measure.of(layers[layer][:, :, -width - 1 : -1].float(), visible)
    return found
