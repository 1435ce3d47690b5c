"""Decide which parameters of a model are trained: whole tensors, or LoRA adapters on chosen layers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from waver.training.tuning.kappatune import Budget, Candidate, cached, choose, matched_rank, ranked
from waver.training.tuning.options import ACTIVATION, ADAPTERS, SELECTIONS, TuneRun

if TYPE_CHECKING:
    from peft import PeftConfig


def check(run: TuneRun) -> None:
    """Refuse a selection that cannot be.

    Raises:
        ValueError: the message says why.
    """
    if run.select not in SELECTIONS:
        raise ValueError(f"there is no selection {run.select!r}; there are {', '.join(SELECTIONS)}")
    if run.activation not in (None, ACTIVATION):
        raise ValueError(f"there is no activation {run.activation!r} to put into a model; there is {ACTIVATION}")
    if run.adapter not in ADAPTERS:
        raise ValueError(f"there is no adapter {run.adapter!r}; there are {', '.join(ADAPTERS)}")
    if run.adapter != "lora" and (not run.rank or run.match is not None or run.keep < 1):
        raise ValueError(f"--adapter {run.adapter} needs --rank, and goes without --match and --keep")
    if run.rank and (run.activation is not None or run.guide):
        raise ValueError("--activation and --guide train tensors of the model itself: leave out --rank")
    if run.guide and run.keep < 1:
        raise ValueError("--guide adds to the loss of all tokens: leave out --keep")
    if run.match is not None and run.rank == 0:
        raise ValueError("--match raises the rank of LoRA adapters: give --rank too")
    if sum(each is not None for each in (run.count, run.parameters, run.threshold)) > 1:
        raise ValueError("--count, --parameters and --threshold are one budget each: give one of them")


def embeddings(model: PreTrainedModel) -> set[str]:
    """Name the parameters that embed tokens, or predict them. They are never chosen: a row for each token is trained
    by the few texts that have it."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    shared = {id(end.weight) for end in ends if end is not None}
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if id(weight) in shared}


def layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers that LoRA can adapt, by name; without the output layer."""
    left_out = embeddings(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and f"{name}.weight" not in left_out
    }


def select(model: PreTrainedModel, run: TuneRun, file: Path) -> list[Candidate]:
    """Choose tensors of a model, from all that may be trained or, with `run.rank`, from its linear layers.

    Args:
        file: keeps the condition numbers.

    Raises:
        ValueError: the budget leaves none.
    """
    if run.rank:
        named = [(f"{name}.weight", cast(torch.Tensor, module.weight)) for name, module in layers(model).items()]
    else:
        named = list(model.named_parameters())
    found = cached(named, file, run.largest, embeddings(model))
    if run.select == "all":
        return found
    order = ranked(found, run.by_shape)
    if run.select == "reverse":
        order = order[::-1]
    elif run.select == "random":
        random.Random(run.seed).shuffle(order)
    return choose(order, Budget(run.count, run.parameters, run.threshold, run.share))


def train_only(model: PreTrainedModel, chosen: Iterable[Candidate]) -> int:
    """Let only the chosen tensors have gradients; returns how many numbers they hold."""
    names = {each.name for each in chosen}
    count = 0
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in names)
        count += weight.numel() if name in names else 0
    return count


def adapted(model: PreTrainedModel, chosen: Iterable[Candidate], run: TuneRun) -> tuple[nn.Module, int]:
    """Wrap a model with adapters on the chosen layers; returns it and the rank.

    Raises:
        ModuleNotFoundError: PEFT is not installed. ValueError: the layers are of another kind.
    """
    from peft import get_peft_model

    every = layers(model)
    names = [each.name.removesuffix(".weight") for each in chosen]
    rank = run.rank
    if run.match is not None:
        rank = matched_rank((_sides(every[name]) for name in names), map(_sides, every.values()), run.match)
    if run.adapter != "lora" and any(isinstance(every[name], Conv1D) for name in names):
        raise ValueError(f"--adapter {run.adapter} is for models of torch.nn.Linear, which this one is not")
    config = _adapter(run, rank, names, any(isinstance(every[name], Conv1D) for name in names))
    torch.manual_seed(run.seed)
    return get_peft_model(model, config), rank


def _adapter(run: TuneRun, rank: int, names: list[str], transposed: bool) -> PeftConfig:
    """Return the configuration of an adapter on layers, whose scale is 2."""
    common: dict[str, Any] = {"r": rank, "target_modules": names, "task_type": "CAUSAL_LM"}
    if run.adapter == "lora":
        from peft import LoraConfig

        return LoraConfig(**common, lora_alpha=2 * rank, lora_dropout=run.dropout, fan_in_fan_out=transposed)
    from waver.engines import tuners

    tuners.register()
    common |= {"alpha": 2 * rank, "dropout": run.dropout}
    if run.adapter == "dynmole":
        from waver.engines.tuners.dynmole import DynMoleConfig

        return DynMoleConfig(**common, experts=run.experts)
    from waver.engines.tuners.queryable import QueryableLoraConfig

    return QueryableLoraConfig(**common, atoms=run.atoms)


def _sides(layer: nn.Module) -> tuple[int, int]:
    first, second = layer.weight.shape  # type: ignore[misc]
    return int(first), int(second)
