"""Train adapters that route tokens, DynMoLE and Queryable LoRA, with any of transformers' and TRL's trainers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from waver.engines.tuners.routing import Decision, RoutedTuner, Usage, usage
from waver.training.texts import Text, padded


def tuner_of(model: torch.nn.Module) -> RoutedTuner:
    """Return the tuner of an adapted model.

    Raises:
        ValueError: it has none that routes tokens.
    """
    found = next((module for module in model.modules() if isinstance(module, RoutedTuner)), None)
    if found is None:
        raise ValueError("the model has no adapter that routes tokens: give a DynMoleConfig or a QueryableLoraConfig")
    return found


@cache
def routed(kind: type[Trainer]) -> type[Trainer]:
    """Make a trainer add the losses of an adapter's routers to its own: `routed(SFTTrainer)`, `routed(GRPOTrainer)`.

    All passes with gradients of one call of `compute_loss` count; reference models and evaluation do not. The means of
    the entropies and the imbalance are logged as `router_entropy` and `router_balance`.
    """

    class RoutedTrainer(kind):  # type: ignore[valid-type, misc]
        _seen: dict[str, list[float]]

        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            tuner = tuner_of(self.accelerator.unwrap_model(model))
            with tuner.recorder.recording() as decisions:
                found = super().compute_loss(model, inputs, *given, **named)
            if not model.training:
                return found
            losses = tuner.losses(_with_gradients(decisions))
            self._note(entropy=losses.entropy, balance=losses.balance)
            items = given[1] if len(given) > 1 else named.get("num_items_in_batch")
            added = losses.total / self._steps_ahead(items)
            return (found[0] + added, *found[1:]) if isinstance(found, tuple) else found + added

        def _steps_ahead(self, items: Any) -> int:
            """Return by what `Trainer.training_step` leaves the loss to be divided."""
            scaled = self.loss_is_scaled_for_ga
            if scaled is None:
                scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
            return int(self.current_gradient_accumulation_steps) if scaled else 1

        def _note(self, **values: torch.Tensor) -> None:
            self._seen = getattr(self, "_seen", {})
            for name, value in values.items():
                self._seen.setdefault(f"router_{name}", []).append(float(value.detach()))

        def log(self, logs: dict[str, float], *given: Any, **named: Any) -> None:
            seen, self._seen = getattr(self, "_seen", {}), {}
            super().log(logs | {name: sum(each) / len(each) for name, each in seen.items()}, *given, **named)

    RoutedTrainer.__name__ = RoutedTrainer.__qualname__ = f"Routed{kind.__name__}"
    return RoutedTrainer


def _with_gradients(decisions: Sequence[Decision]) -> list[Decision]:
    return [each for each in decisions if each.probabilities.requires_grad]


@torch.no_grad()
def usage_on(model: PreTrainedModel, texts: Sequence[Text], batch: int = 8) -> Usage:
    """Measure how the routers of an adapted model treat texts."""
    tuner, was_training = tuner_of(model), model.training
    model.eval()
    decisions: list[Decision] = []
    for place in range(0, len(texts), batch):
        made = {name: value.to(model.device) for name, value in padded(texts[place : place + batch]).items()}
        with tuner.recorder.recording() as found:
            model(input_ids=made["input_ids"], attention_mask=made["attention_mask"], use_cache=False)
        decisions += found
    model.train(was_training)
    return usage(decisions)
