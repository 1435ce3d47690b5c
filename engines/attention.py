"""Read attention weights of a transformers model, which its fast kernels never materialise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel


@contextmanager
def last_attention(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Make the model's passes compute attention weights explicitly; the list receives those of the last layer that has
    any, `[rows, heads, queries, keys]`. It stays empty where a model has no such way or no attention.

    Only one layer's weights are held at a time: all of them would be `layers` times as much.
    """
    seen: list[torch.Tensor] = []

    def keep(weights: torch.Tensor) -> None:
        seen[:] = [weights]

    with each_attention(model, keep):
        yield seen


@contextmanager
def each_attention(model: PreTrainedModel, keep: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Make the model's passes compute attention weights explicitly; `keep` gets those of each layer in turn,
    `[rows, heads, queries, keys]`, and is never called where a model has no such way or no attention."""

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, torch.Tensor) and weights.ndim == 4 and weights.shape[-1] >= weights.shape[-2]:
            keep(weights)

    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
    except ValueError:
        yield
        return
    hooks = [module.register_forward_hook(hook) for module in model.modules() if _attends(module)]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
        model.set_attn_implementation(before)


def _attends(module: torch.nn.Module) -> bool:
    """Return whether a module computes attention: its class is named so in every family of transformers."""
    return "attention" in type(module).__name__.lower()
