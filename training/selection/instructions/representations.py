"""Represent examples as vectors: gradients (LESS), hidden states (RDS+), or sentence embeddings (arXiv 2602.14696,
section 3.1).

A representation makes unit vectors of examples, `[examples, checkpoints, dimensions]`, one per checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from waver import job
from waver.training.selection.instructions.course import Course
from waver.training.selection.instructions.gradients import (
    Projection,
    adam_direction,
    epoch_rates,
    epoch_weights,
    loss_gradient,
    unit,
)
from waver.training.selection.instructions.pool import Example, written
from waver.training.selection.instructions.similarity import Floats
from waver.training.tuning.selection import layers

Role = Literal["query", "candidate"]
Embed = Callable[[list[str], Role], Floats]
"""Embeds texts as unit vectors, `[texts, dimensions]`."""
INSTRUCTION = "Find an instruction and its answer that help with this task: "
"""Words in front of a query for a sentence embedder."""
GRADIENTS = 256 << 20
"""Bytes of gradients in memory at a time."""


class Representation(Protocol):
    """Makes vectors of examples."""

    weights: Sequence[float]
    """Of the checkpoints, with the sum 1."""
    dimensions: int
    chunk: int
    """Examples that are best encoded together."""

    def encode(self, examples: Sequence[Example], role: Role) -> Floats:
        """Return unit vectors `[examples, checkpoints, dimensions]`."""


class HiddenStates:
    """RDS+: the last layer's hidden states, weighted by their positions."""

    weights: Sequence[float] = (1.0,)
    chunk = 16

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model.eval()
        self.dimensions = int(model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, examples: Sequence[Example], role: Role) -> Floats:
        return np.stack([self._one(example) for example in examples])

    def _one(self, example: Example) -> Floats:
        ids = torch.tensor([example.text.ids], device=self._model.device)
        states = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()
        return np.asarray(unit(pooled(states))[None].cpu())


def pooled(states: torch.Tensor) -> torch.Tensor:
    """Return the mean of states `[T, d]` with the weights t / sum(1..T)."""
    places = torch.arange(1, len(states) + 1, device=states.device, dtype=states.dtype)
    return (places / places.sum()) @ states


class Embeddings:
    """EMBED: a sentence embedder reads the whole conversation; queries stand behind a retrieval instruction."""

    weights: Sequence[float] = (1.0,)
    chunk = 64

    def __init__(self, embed: Embed, dimensions: int) -> None:
        self._embed, self.dimensions = embed, dimensions

    def encode(self, examples: Sequence[Example], role: Role) -> Floats:
        before = INSTRUCTION if role == "query" else ""
        made = self._embed([before + written(example.row) for example in examples], role)
        return np.asarray(made)[:, None]


class Gradients:
    """LESS: projected gradients of LoRA adapters at the checkpoints of a warm-up; of candidates, Adam's direction.

    Args:
        model: with its adapters. files: the state after each epoch (`KeepEpochs`). weights: of these.
    """

    def __init__(
        self, model: nn.Module, files: Sequence[Path], weights: Sequence[float], dimensions: int, seed: int = 0
    ) -> None:
        self._model, self._files, self.weights, self.dimensions = model.eval(), files, weights, dimensions
        self._named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        count = sum(weight.numel() for _, weight in self._named)
        self._project = Projection(count, dimensions, seed)
        self.chunk = max(1, min(512, GRADIENTS // (4 * count)))

    def encode(self, examples: Sequence[Example], role: Role) -> Floats:
        made = np.zeros((len(examples), len(self._files), self.dimensions), np.float32)
        weights = [weight for _, weight in self._named]
        for place, file in enumerate(self._files):
            state = load_file(file)
            with torch.no_grad():
                for name, weight in self._named:
                    weight.copy_(state[f"weight/{name}"])
            m, v = (self._flat(state, kind) for kind in ("m", "v"))
            rows = torch.zeros(len(examples), self._project.parameters, dtype=torch.float16, device=weights[0].device)
            for row, example in enumerate(examples):
                gradient = loss_gradient(self._model, weights, example.text)
                rows[row] = gradient if role == "query" else adam_direction(gradient, m, v)
            made[:, place] = unit(self._project(rows)).cpu().numpy()
        return made

    def _flat(self, state: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
        device = self._named[0][1].device
        return torch.cat([state[f"{kind}/{name}"].flatten() for name, _ in self._named]).to(device)


class KeepEpochs(TrainerCallback):
    """Writes what LESS needs after each epoch: the trained weights, and Adam's averages `m` and `v`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        model, optimizer = given["model"], given["optimizer"]
        kept: dict[str, torch.Tensor] = {}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                own = optimizer.state[weight]
                kept[f"weight/{name}"] = weight.detach().float().cpu().contiguous().clone()
                kept[f"m/{name}"] = own["exp_avg"].float().cpu().contiguous().clone()
                kept[f"v/{name}"] = own["exp_avg_sq"].float().cpu().contiguous().clone()
        file = epoch_file(self.folder, round(state.epoch))
        job.replace_file(file, lambda path: save_file(kept, path))


def epoch_file(folder: Path, epoch: int) -> Path:
    """Return where the state after an epoch, counted from 1, is kept."""
    return folder / f"epoch-{epoch}.safetensors"


def with_adapters(model: PreTrainedModel, rank: int, alpha: int, dropout: float, seed: int) -> nn.Module:
    """Wrap a model with LoRA adapters: on a Llama's q, k, v and o, on all linear layers of others.

    Raises:
        ModuleNotFoundError: PEFT is not installed.
    """
    from peft import LoraConfig, get_peft_model

    names = list(layers(model))
    if model.config.model_type == "llama":
        names = [name for name in names if name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "o_proj")]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def checkpoint_weights(course: Course, texts: int) -> list[float]:
    """Return the weights of the checkpoints of a warm-up on so many texts."""
    return epoch_weights(epoch_rates(course.epochs, course.steps(texts), course.warmup(texts), course.rate))
