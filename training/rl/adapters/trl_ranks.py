"""Show every process the rows of all: a recipe's hooks then say the same in each, as if one had drawn them all.

What is gathered are numbers per token and row, small beside a model. Gradients are averaged by whoever wraps the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object

Items = TypeVar("Items", bound=Any)
"""A sequence, or a tensor."""


@dataclass(frozen=True)
class Ranks:
    """The data-parallel processes of an accelerator. All of them have to make the same calls."""

    accelerator: Any

    @property
    def count(self) -> int:
        """Return the number of processes."""
        number: int = self.accelerator.num_processes
        return number

    def mine(self, items: Items) -> Items:
        """Return this process's part of items that all have, whose number is a multiple of `count`."""
        size = len(items) // self.count
        first = self.accelerator.process_index * size
        part: Items = items[first : first + size]
        return part

    def all_of(self, items: list[Any]) -> list[Any]:
        """Return the objects of all processes, in their order."""
        if self.count == 1:
            return items
        everyones: list[Any] = gather_object(items)
        return everyones

    def rows(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the rows of all processes below each other, in their order.

        Args:
            tensors: `[n]` or `[n, T]` each, n the same everywhere; where T differs they are filled up with 0, on the
                left if their name begins with `prompt`.
        """
        if self.count == 1:
            return dict(tensors)
        return {name: self._rows(x, left=name.startswith("prompt")) for name, x in tensors.items()}

    def _rows(self, x: torch.Tensor, *, left: bool) -> torch.Tensor:
        whole = x.to(torch.uint8) if x.dtype == torch.bool else x
        if x.ndim > 1:
            whole = self.accelerator.pad_across_processes(whole, dim=1, pad_first=left)
        return self.accelerator.gather(whole.contiguous()).to(x.dtype)

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sum over all processes of each value; the names have to be the same everywhere."""
        if self.count == 1:
            return dict(values)
        names = sorted(values)
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        total = self.accelerator.reduce(torch.tensor([values[n] for n in names], dtype=dtype, device=device), "sum")
        return dict(zip(names, total.tolist(), strict=True))

    def spread(self, chosen: Sequence[int], size: int) -> list[int]:
        """Return the chosen rows, which come in groups of `size`, with so many groups repeated at the end that every
        process gets as many rows."""
        step = lcm(size, self.count)
        wanted = -(-len(chosen) // step) * step
        return [chosen[i % len(chosen)] for i in range(wanted)]
