"""Hundreds of edits of one matrix, judged by what is left of the first ones: RLSEdit (arXiv 2601.15686) and rivals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from waver.benchmarks.experiments import Found
from waver.training.editing import least_squares


@dataclass(frozen=True)
class Edits:
    """Sizes of the experiment on editing: keys, values, edits, edits of a batch."""

    keys: int = 512
    values: int = 64
    edits: int = 600
    batch: int = 10
    ends: int = 100


SIZES = Edits()


def rlsedit(seed: int, size: Edits = SIZES, mass: float = 100.0, penalty: float = 1e-6) -> Found:
    """Return by editor the share of the first and of the last edits that are nearer to the new value than to the old
    one, and the drift on fresh general keys."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(size.keys, size.keys))[0]
    spectrum = torch.exp(-0.02 * torch.arange(size.keys, dtype=torch.float64) * 512 / size.keys)
    root = (spectrum / spectrum.mean()).sqrt()

    def general(rows: int) -> torch.Tensor:
        made: torch.Tensor = (normal(rows, size.keys) * root) @ basis.T
        return made

    weight = normal(size.keys, size.values) / math.sqrt(size.keys)
    sample = general(3000)
    moment = sample.T @ sample / len(sample)
    keys = 0.3 * general(size.edits) + normal(size.edits, size.keys)
    values = keys @ weight + 0.7 * normal(size.edits, size.values)
    fresh = general(500)
    eye = torch.eye(size.keys, dtype=torch.float64)
    soft = least_squares.start(penalty, mass * moment)
    editors = {
        "rlsedit": (soft, True),
        "memit": (soft, False),
        "least_squares": (eye / 1e-6, False),
        "alphaedit": (least_squares.nullspace(moment), True),
    }
    found = {}
    for name, (start, remembers) in editors.items():
        inverse, edited = start, weight
        for place in range(0, size.edits, size.batch):
            part = slice(place, place + size.batch)
            step = least_squares.step(inverse, keys[part], values[part] - keys[part] @ edited)
            edited = step.weight(edited)
            inverse = step.inverse(inverse) if remembers else start
        said = keys @ edited
        near = (said - values).norm(dim=-1) < (said - keys @ weight).norm(dim=-1)
        ends = [float(part.double().mean()) for part in (near[: size.ends], near[-size.ends :])]
        change = (fresh @ (edited - weight)).square().sum() / (fresh @ weight).square().sum()
        found[name] = {"first": ends[0], "last": ends[1], "drift": float(change)}
    return found
