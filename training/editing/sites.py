"""Find the MLPs of a model whose output weights are edited, read what goes in and out of them, and move what comes out.

Weights are handed out as `[d_k, d_v]`, input by output, whichever way a module keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

DOWN = ("down_proj", "c_proj", "fc_out", "dense_4h_to_h")
"""Names of the second matrix of an MLP: Llama, Qwen and Mistral; GPT-2; GPT-J; GPT-NeoX."""
FEWEST = 2
PUBLISHED = {"gpt2": (13 / 48, 18 / 48), "gptj": (3 / 28, 9 / 28), "qwen2": (7 / 28, 12 / 28)}
"""Layers that the paper edits, as a part of all, by type of model; for others those of Llama, 4 to 8 of 32."""


@dataclass(frozen=True)
class Site:
    """One layer of a model and its MLP's output weights."""

    layer: int
    block: nn.Module
    down: nn.Module

    def read(self) -> torch.Tensor:
        """Return the weights, `[d_k, d_v]`, float32."""
        weight = self._weight.detach().float()
        # Contiguous, as files give it back: products of other layouts round otherwise.
        return (weight if isinstance(self.down, Conv1D) else weight.T).clone(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def write(self, weight: torch.Tensor) -> None:
        """Put `[d_k, d_v]` weights into the model."""
        self._weight.copy_(weight if isinstance(self.down, Conv1D) else weight.T)

    @property
    def _weight(self) -> nn.Parameter:
        return self.down.weight  # type: ignore[return-value]


def sites(model: PreTrainedModel) -> list[Site]:
    """List the MLPs of a model, in the order of its layers.

    Raises:
        ValueError: it has none of a kind that can be edited.
    """
    modules = dict(model.named_modules())
    found = []
    for name, module in modules.items():
        path = name.split(".")
        if path[-1] in DOWN and path[-2:-1] == ["mlp"] and path[-3].isdigit():
            block = modules[".".join(path[:-2])]
            if hasattr(block, "post_feedforward_layernorm"):
                raise ValueError("this model normalises what its MLPs put out, so that no edit of theirs is exact")
            found.append(Site(int(path[-3]), block, module))
    if not found:
        raise ValueError("this model has no MLP of a kind that is known: mixtures of experts cannot be edited")
    return sorted(found, key=lambda site: site.layer)


def chosen_sites(model: PreTrainedModel, first: int | None, last: int | None) -> list[Site]:
    """Return the sites from layer `first` to `last`; where not given, those that the paper edits in such a model.

    Raises:
        ValueError: there are no such layers.
    """
    there = sites(model)
    low, high = PUBLISHED.get(model.config.model_type, (4 / 32, 9 / 32))
    count = max(FEWEST, round((high - low) * len(there)))
    if first is None:
        first = round(low * len(there)) if last is None else max(0, last - count + 1)
    if last is None:
        last = min(there[-1].layer, first + count - 1)
    found = [site for site in there if first <= site.layer <= last]
    if not found or len(found) != last - first + 1:
        raise ValueError(f"layers {first} to {last} cannot be edited: the model has layers 0 to {there[-1].layer}")
    return found


def rows(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Make a batch of sequences, padded on the right: `input_ids` and `attention_mask`."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(sequences):
        ids[row, : len(each)] = torch.tensor(list(each))
        mask[row, : len(each)] = 1
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def states(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the hidden states that the output layer reads, `[rows, tokens, hidden]`."""
    found: torch.Tensor = model.base_model(**batch, use_cache=False).last_hidden_state
    return found


class _Seen(Exception):
    """Everything that a pass is for has been seen."""


@contextmanager
def seen(modules: Sequence[nn.Module], outputs: bool = False, stop: bool = False) -> Iterator[list[torch.Tensor]]:
    """Keep what goes into the modules, or with `outputs` comes out of them, in the passes inside: the last of each.

    Args:
        stop: end the block behind the last of the modules, whose pass needs not go on.
    """
    kept: list[Any] = [None] * len(modules)

    def hook(place: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            value = output if outputs else inputs[0]
            kept[place] = (value[0] if isinstance(value, tuple) else value).detach()
            if stop and place == len(modules) - 1:
                raise _Seen

        return keep

    handles = [module.register_forward_hook(hook(place)) for place, module in enumerate(modules)]
    try:
        yield kept
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def moved(block: nn.Module, places: torch.Tensor, by: torch.Tensor) -> Iterator[None]:
    """Add vectors to a block's output in the passes inside: in each row at one place.

    Args:
        places: `[rows]`. by: `[rows, hidden]`; gradients flow into it.
    """

    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        every = torch.arange(len(places), device=hidden.device)
        hidden = hidden.index_put((every, places), hidden[every, places] + by)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return one place of each row: `[rows, tokens, size]` -> `[rows, size]`."""
    return values[torch.arange(len(values), device=values.device), places.to(values.device)]


@torch.inference_mode()
def moments(
    model: PreTrainedModel, where: Sequence[Site], texts: Sequence[Sequence[int]], samples: int, batch: int = 8
) -> dict[int, torch.Tensor]:
    """Compute the second moment E[k k'] of what goes into each site, over at most `samples` tokens of texts; by layer,
    `[d_k, d_k]` float32."""
    sums = {site.layer: torch.zeros(len(site.read()), len(site.read()), device=model.device) for site in where}
    count = 0
    for place in range(0, len(texts), batch):
        made = rows(model, texts[place : place + batch])
        with seen([site.down for site in where], stop=True) as inputs:
            states(model, made)
        real = made["attention_mask"].bool()
        for site, value in zip(where, inputs, strict=True):
            keys = value[real].float()
            sums[site.layer] += keys.T @ keys
        count += int(real.sum())
        if count >= samples:
            break
    return {layer: total / count for layer, total in sums.items()}
