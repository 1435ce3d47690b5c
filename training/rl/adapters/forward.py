"""Run a causal language model over rollouts: log-probabilities, entropies, and the measures of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from waver.entropy import shannon_entropy
from waver.training.rl.adapters.head import Look
from waver.training.rl.composition import RecipeError
from waver.training.rl.method import Measure
from waver.training.rl.recipe import Recipe

Rows = Mapping[str, torch.Tensor]
"""TRL's rows: prompts `[B, prompt]`, padded on the left, and completions `[B, T]`, on the right: ids and masks."""

SAID = "said/"
"""Columns of rows that hold a pass over them begin so."""


@dataclass(frozen=True)
class ForwardPass:
    """Of the response tokens, `[B, T]` each; nats, of logits divided by the temperature."""

    logprob: torch.Tensor
    entropy: torch.Tensor
    measures: dict[str, torch.Tensor] = field(default_factory=dict)

    def as_rows(self) -> dict[str, torch.Tensor]:
        """Return the same as columns of rows, for `of_rows`."""
        measures = {f"{SAID}measures/{name}": x for name, x in self.measures.items()}
        return {f"{SAID}logprob": self.logprob, f"{SAID}entropy": self.entropy, **measures}

    @classmethod
    def of_rows(cls, rows: Rows) -> ForwardPass:
        """Return the pass whose columns these rows have."""
        prefix = f"{SAID}measures/"
        measures = {name.removeprefix(prefix): x for name, x in rows.items() if name.startswith(prefix)}
        return cls(rows[f"{SAID}logprob"], rows[f"{SAID}entropy"], measures)

    @classmethod
    def below_each_other(cls, parts: list[ForwardPass]) -> ForwardPass:
        """Return passes over some rows each as one over all of them."""
        measures = {name: torch.cat([part.measures[name] for part in parts]) for name in parts[0].measures}
        return cls(torch.cat([part.logprob for part in parts]), torch.cat([part.entropy for part in parts]), measures)


def needs_logits(recipe: Recipe, *, live: bool) -> bool:
    """Tell whether log-probabilities and entropies are not enough for its measures of that phase."""
    return any(not _is_entropy(measure) for measure in recipe.wanted("logits", live=live))


def _is_entropy(measure: Measure) -> bool:
    return measure.of is shannon_entropy


def from_entropy(recipe: Recipe, logprob: torch.Tensor, entropy: torch.Tensor, *, live: bool) -> ForwardPass:
    """Make the pass of a phase that needs no logits: what it measures of them are entropies, which trainers compute
    anyway."""
    return ForwardPass(logprob, entropy, {m.name: entropy for m in recipe.wanted("logits", live=live)})


def from_head(model: Any, rows: Rows, recipe: Recipe, *, temperature: float = 1.0, live: bool) -> ForwardPass:
    """Run the pass of a phase that measures logits, through the head of `add_measuring_head`, a few tokens at a time.

    Args:
        live: in an update, with gradient; else without.
    """

    def measure(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        found = recipe.measured(logits, live=live)
        # Keep the name apart: a measure of that name may be wanted in one phase and not in the other.
        entropy = found["entropy"] if live and "entropy" in found else shannon_entropy(logits.detach())
        return {"_entropy": entropy, **found}

    look = Look(rows["completion_ids"], rows["completion_mask"], measure, temperature)
    with torch.set_grad_enabled(live and torch.is_grad_enabled()):
        said = model(
            input_ids=torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
            attention_mask=torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
            look=look,
        )
    names = said.keys() - {"logprob", "_entropy"}
    return ForwardPass(said["logprob"], said["_entropy"], {name: said[name] for name in names})


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
        attention_of(model, measure.layer)


def attention_of(model: Any, layer: int | None) -> torch.nn.Module:
    """Return the attention module of a layer of a causal language model of transformers, the middle one for None.

    Raises:
        RecipeError: that layer has none.
    """
    config = model.config.get_text_config()
    wanted = config.num_hidden_layers // 2 if layer is None else layer % config.num_hidden_layers
    for module in model.modules():
        if getattr(module, "layer_idx", None) == wanted and "Attention" in type(module).__name__:
            return module
    raise RecipeError(f"layer {wanted} of a {type(model).__name__} has no attention whose weights could be measured")


@contextmanager
def watching(model: Any, rows: Rows, recipe: Recipe, *, live: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Measure attention in the forward passes over these rows in this block, of the wanted layers alone.

    Yields:
        The measures by name, `[B, T]` each, once the model has run.
    """
    found: dict[str, torch.Tensor] = {}
    measures = recipe.wanted("attention", live=live)
    if not measures:
        yield found
        return
    mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
    width = rows["completion_ids"].size(1)
    causal = torch.ones(mask.size(1), mask.size(1), dtype=torch.bool, device=mask.device).tril()
    visible = (causal & mask.bool().unsqueeze(1)).unsqueeze(1)[:, :, -width - 1 : -1]

    def keeper(measure: Measure) -> Callable[..., None]:
        def keep(module: torch.nn.Module, _: Any, output: Any) -> None:
            # (output, weights): eager attention gives its weights whether they are asked for or not
            found[measure.name] = measure.of(output[1][:, :, -width - 1 : -1].float(), visible)

        return keep

    handles = [attention_of(model, m.layer).register_forward_hook(keeper(m)) for m in measures]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
