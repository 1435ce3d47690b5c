"""Put CRReLU (arXiv 2405.12954) into a model's MLPs, which are trained with it, and tell what it came to.

A model that was trained with another activation is another function with this one, so that its MLPs must learn anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from waver.engines.activations import CRReLU
from waver.entropy.differential import entropy_change
from waver.training.texts import Text, padded

SETTINGS = ("hidden_act", "hidden_activation", "activation_function")
SLOTS = ("act_fn", "act")
FASTER = 10.0
"""The learning rate of the coefficients, as a multiple of the weights'. At the weights' own they hardly move."""


def blocks(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the name of each MLP, itself, and the attribute of its activation."""
    for name, module in model.named_modules():
        slot = next((each for each in SLOTS if isinstance(getattr(module, each, None), nn.Module)), None)
        if slot is not None and name.rpartition(".")[2] == "mlp":
            yield name, module, slot


def swap(model: PreTrainedModel) -> set[str]:
    """Put CRReLU into every MLP (of a gated one: on the gate alone); returns the names of the MLPs' parameters, which
    have to be trained.

    Raises:
        ValueError: the model has no MLPs of a kind that is known.
    """
    settings = [each for each in SETTINGS if hasattr(model.config, each)]
    found = list(blocks(model))
    if not settings or not found:
        raise ValueError("this model has no MLPs whose activation can be replaced")
    for each in settings:
        setattr(model.config, each, "crrelu")
    names = set()
    for name, module, slot in found:
        setattr(module, slot, CRReLU().to(model.device))
        names |= {f"{name}.{each}" for each, _ in module.named_parameters()}
    return names


def optimizer(model: nn.Module, rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Make AdamW with the coefficients in a group of their own: ten times the rate, no decay."""
    coefficients = {id(module.eps) for module in model.modules() if isinstance(module, CRReLU)}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [weight for weight in trained if id(weight) not in coefficients], "weight_decay": weight_decay},
            {
                "params": [weight for weight in trained if id(weight) in coefficients],
                "lr": FASTER * rate,
                "weight_decay": 0.0,
            },
        ],
        lr=rate,
    )


@dataclass(frozen=True)
class Learned:
    """One MLP's coefficient, and how its activation changes the entropy of what comes in above 0, against ReLU, in
    nats; None where it is not increasing there, so that there is no such number."""

    eps: float
    entropy_change: float | None


@torch.inference_mode()
def learned(model: PreTrainedModel, texts: Sequence[Text]) -> list[Learned]:
    """Measure every CRReLU of a model on texts."""
    modules = [module for module in model.modules() if isinstance(module, CRReLU)]
    inputs: list[list[torch.Tensor]] = [[] for _ in modules]
    handles = [
        module.register_forward_hook(lambda _, given, __, kept=kept: kept.append(given[0][given[0] > 0].float()))
        for module, kept in zip(modules, inputs, strict=True)
    ]
    try:
        made = padded(texts[:16])
        model.eval()(made["input_ids"].to(model.device), attention_mask=made["attention_mask"].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for module, kept in zip(modules, inputs, strict=True):
        x, eps = torch.cat(kept), float(module.eps.detach())
        slopes = 1 + eps * (1 - x.square()) * (-0.5 * x.square()).exp()
        change = float(entropy_change(slopes)) if len(x) and bool((slopes > 0).all()) else None
        found.append(Learned(eps, change))
    return found
