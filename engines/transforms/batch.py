"""Apply truncations to a batch in which rows ask for different ones, or for none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch

from waver.devices import to_device
from waver.engines.transforms.base import Context, Transform, Truncation
from waver.entropy.geometry import Geometry
from waver.entropy.truncation import Crop


def truncations(transforms: Sequence[Transform]) -> list[Truncation]:
    """Select the transforms that take tokens away."""
    return [each for each in transforms if isinstance(each, Truncation)]


def needs_geometry(transforms: Sequence[Transform]) -> bool:
    """Return whether the whitened input embeddings may be needed."""
    return any(each.needs_geometry for each in transforms)


def truncate(
    logits: torch.Tensor,
    transforms: Sequence[Sequence[Transform]],
    geometry: Geometry | None = None,
    temperatures: torch.Tensor | None = None,
) -> Crop:
    """Apply each row's truncations, one after the other; each kind runs once, on all rows that ask for it.

    Args:
        logits: `[rows, vocab]` after temperature; they are left as they are. Smaller types are taken as float32, which
            is what comes back: sums of many probabilities need it.
        transforms: for each row its own, or none; an adaptive temperature among them was applied before.
        geometry: from `waver.entropy.geometry.whiten`, where `needs_geometry`.
        temperatures: `[rows]`, what the logits were divided by, where a transform selects at its own temperature.

    Returns:
        A `Crop`; rows without a truncation have their logits as they were, and `kept` 0.

    Raises:
        ValueError: the geometry is needed, and there is none.
    """
    rows = len(transforms)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    out: Crop | None = None
    wanted = [truncations(own) for own in transforms]
    for place in range(max(map(len, wanted), default=0)):
        for kind, chosen in _by_kind(wanted, place).items():
            asked = [wanted[row][place] for row in chosen]
            if len(chosen) == rows:
                context = Context(temperatures, geometry)
                out = kind[0].crop(logits if out is None else out.logits, asked, context)
                continue
            if out is None:
                out = _untouched(logits.clone())
            index = to_device(chosen, logits.device)
            context = Context(None if temperatures is None else temperatures[index], geometry)
            part = kind[0].crop(out.logits[index], asked, context)
            for whole, own_part in zip(out, part, strict=True):
                whole[index] = own_part
    return _untouched(logits) if out is None else out


def _by_kind(wanted: Sequence[Sequence[Truncation]], place: int) -> dict[tuple[type[Truncation], Hashable], list[int]]:
    """Group the rows by the class and variant of their truncation at `place`."""
    groups: dict[tuple[type[Truncation], Hashable], list[int]] = defaultdict(list)
    for row, own in enumerate(wanted):
        if place < len(own):
            groups[type(own[place]), own[place].variant].append(row)
    return groups


def _untouched(logits: torch.Tensor) -> Crop:
    """Make the crop of rows without a truncation."""
    rows = len(logits)
    return Crop(logits, torch.zeros(rows, dtype=torch.long, device=logits.device), logits.new_zeros(rows))
