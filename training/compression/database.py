"""Keep every layer of a model at every level on disk, and put the levels of a state into the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from waver import job
from waver.training.compression.layers import Hessian, inverse_factor, linear_layers, pruned, quantised
from waver.training.compression.search import State


def compress_all(
    blocks: Sequence[nn.Module],
    forward: Callable[[], None],
    levels: Mapping[str, Sequence[int]],
    make: Callable[[str, int, torch.Tensor, torch.Tensor], torch.Tensor],
    base: Mapping[str, int],
    folder: Path,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Compress block after block, each from the inputs that it gets once those before it are at their base level.

    Layers whose file is there are not made again. The model is at its base level afterwards.

    Args:
        forward: runs the calibration texts through the model. levels, base: by the layer's name. make: compresses a
            weight, given the layer's name, the level, the weight and the factor of its Hessian.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, block in enumerate(blocks):
        own = [(f"{number}.{name}", layer) for name, layer in linear_layers(block)]
        missing = [(name, layer) for name, layer in own if not _file(folder, name).exists()]
        hessians = {name: Hessian(layer) for name, layer in missing}
        if missing:
            forward()
        for name, layer in missing:
            hessians[name].close()
            factor = inverse_factor(hessians[name].sum)
            made = {str(each): make(name, each, layer.weight, factor).contiguous() for each in levels[name]}
            job.replace_file(_file(folder, name), partial(save_file, made))
        for name, layer in own:
            _put(layer, folder, name, base[name])
            tick()


class Database:
    """The levels on disk, and the state that the model is in."""

    def __init__(self, layers: Sequence[tuple[str, nn.Linear]], folder: Path, state: State) -> None:
        self.layers, self.folder, self.state = layers, folder, state

    def set(self, state: State) -> None:
        """Put the levels of a state into the model; only what changes is read."""
        for (name, layer), before, after in zip(self.layers, self.state, state, strict=True):
            if before != after:
                _put(layer, self.folder, name, after)
        self.state = state


def sparse_at(sparsity: float, step: int) -> Callable[[str, int, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the maker of levels of sparsity: level j has `sparsity * weights + j * step` zeros."""
    return lambda _, level, weight, factor: pruned(weight, factor, round(sparsity * weight.numel()) + level * step)


def rounded(name: str, level: int, weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Make a level of quantisation: level -3 has 3 bits."""
    return quantised(weight, factor, -level)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _put(layer: nn.Linear, folder: Path, name: str, level: int) -> None:
    with safe_open(_file(folder, name), "pt") as file, torch.no_grad():
        layer.weight.copy_(file.get_tensor(str(level)))
