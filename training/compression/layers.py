"""Compress linear layers at several levels from one Hessian of their inputs: SparseGPT and GPTQ, as EvoPress (arXiv
2410.14649) makes its levels.

Columns are compressed in order, and what a column loses is made up for by the columns behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

DAMP = 0.01
BLOCK = 128
"""Columns whose mask is chosen together, and of a group that shares a scale."""
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers that count."""


def linear_layers(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of a block that count."""
    for name, part in block.named_modules():
        if isinstance(part, nn.Linear) and name.rpartition(".")[2] in NAMES:
            yield name, part


class Hessian:
    """The sum of x xᵀ over the inputs of a layer, `[columns, columns]` float32, taken while the hook is there."""

    def __init__(self, layer: nn.Linear) -> None:
        self.sum = torch.zeros(layer.in_features, layer.in_features)
        self._hook = layer.register_forward_pre_hook(self._add)

    def _add(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2).float().cpu()
        self.sum += x.T @ x

    def close(self) -> None:
        self._hook.remove()


def inverse_factor(hessian: torch.Tensor, damp: float = DAMP) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped inverse, `[columns, columns]`; inputs that are always 0 count as
    1."""
    h = hessian.double().clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    h.diagonal().add_(damp * h.diagonal().mean())
    made: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    return made


def pruned(weight: torch.Tensor, factor: torch.Tensor, count: int) -> torch.Tensor:
    """Set exactly `count` of the weights `[rows, columns]` to 0, by the smallest w² / diag² in each block of columns,
    whose share is even, and make up for it."""
    rows, columns = weight.shape
    mask = torch.zeros(rows, columns, dtype=torch.bool)

    def choose(block: torch.Tensor, start: int, diagonal: torch.Tensor) -> None:
        end = start + block.shape[1]
        own = round(count * end / columns) - round(count * start / columns)
        scores = (block / diagonal).square()
        flat = scores.flatten().argsort(stable=True)[:own]
        chosen = torch.zeros(block.numel(), dtype=torch.bool)
        chosen[flat] = True
        mask[:, start:end] = chosen.reshape(block.shape)

    made = _compensated(weight, factor, choose, lambda column, place: column.masked_fill(mask[:, place], 0.0))
    return made.masked_fill(mask, 0.0)


def quantised(weight: torch.Tensor, factor: torch.Tensor, bits: int, group: int = BLOCK) -> torch.Tensor:
    """Round weights `[rows, columns]` to 2^bits asymmetric steps for each row and group of columns, and make up for
    it."""
    most = 2**bits - 1
    grid: dict[str, torch.Tensor] = {}

    def choose(block: torch.Tensor, start: int, diagonal: torch.Tensor) -> None:
        low, high = block.amin(1).clamp(max=0), block.amax(1).clamp(min=0)
        grid["scale"] = ((high - low) / most).clamp(min=1e-12)
        grid["zero"] = (-low / grid["scale"]).round()

    def column(values: torch.Tensor, place: int) -> torch.Tensor:
        steps = (values / grid["scale"]).round() + grid["zero"]
        return grid["scale"] * (steps.clamp(0, most) - grid["zero"])

    return _compensated(weight, factor, choose, column, group)


def _compensated(
    weight: torch.Tensor,
    factor: torch.Tensor,
    choose: Callable[[torch.Tensor, int, torch.Tensor], None],
    column: Callable[[torch.Tensor, int], torch.Tensor],
    width: int = BLOCK,
) -> torch.Tensor:
    """Compress column after column, and add each one's error to those behind it."""
    w = weight.detach().double().cpu().clone()
    for start in range(0, w.shape[1], width):
        end = min(start + width, w.shape[1])
        choose(w[:, start:end], start, factor.diagonal()[start:end])
        for place in range(start, end):
            kept = column(w[:, place], place)
            error = (w[:, place] - kept) / factor[place, place]
            w[:, place] = kept
            w[:, place + 1 :] -= error[:, None] * factor[place, place + 1 :]
    return w.to(weight.dtype)


def all_layers(model: PreTrainedModel, layers: nn.ModuleList) -> list[tuple[str, nn.Linear]]:
    """List the linear layers that count, by block, with unique names."""
    found = [(f"{number}.{name}", layer) for number, block in enumerate(layers) for name, layer in linear_layers(block)]
    if not found:
        raise ValueError(f"{type(model).__name__} has none of the linear layers {', '.join(NAMES)}")
    return found
