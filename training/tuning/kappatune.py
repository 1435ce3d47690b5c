"""KappaTune (arXiv 2506.16289): choose the weight tensors to train by their condition numbers.

    kappa(W) = sigma_max / (sigma_min + 1e-8)

A flat spectrum (small kappa) passes the most entropy of a Gaussian input and is least specialised: those tensors are
trained, the others stay. Nothing but the frozen weights enters: no data, no gradient. PEFT's `KappaTuneSelector` has
the same formula and cut for the linear layers that LoRA adapts; here the choice is also for whole tensors, and is
cached by a digest of the weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from waver import job

EPS = 1e-8
LARGEST = 16384
"""Tensors with a longer dimension are left out, as in PEFT; the first released code had no such bound."""
EXPERTS = ("gate_up_proj", "down_proj", "gate_proj", "up_proj")
"""Parameters that hold all experts of a mixture where they have three dimensions: `[experts, a, b]`."""


@dataclass(frozen=True)
class Candidate:
    """A tensor that may be chosen: its name, condition number and shape, and whether it holds experts."""

    name: str
    kappa: float
    shape: tuple[int, ...]
    experts: bool = False

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Budget:
    """The cut of the ranking; the first that is set counts.

    Args:
        count: tensors. parameters: at most so many numbers in them, but one tensor at least. threshold: the largest
            kappa. share: part of the candidates, rounded down, at least one.
    """

    count: int | None = None
    parameters: int | None = None
    threshold: float | None = None
    share: float = 0.2


def condition_number(weight: torch.Tensor, eps: float = EPS) -> float:
    """Compute sigma_max / (sigma_min + eps) in float32 (float64 for float64). More than two dimensions are read as
    `[first, rest]`. Infinite where the decomposition fails or the weights are not finite; with `eps` 0 also for a
    singular matrix."""
    matrix = weight.detach()
    matrix = (matrix if matrix.dtype == torch.float64 else matrix.float()).reshape(weight.shape[0], -1)
    try:
        values = torch.linalg.svdvals(matrix)
    except RuntimeError:  # no convergence, or entries that are not finite
        return math.inf
    kappa = float(values[0] / (values[-1] + eps))
    return kappa if math.isfinite(kappa) else math.inf


def experts_condition_number(weight: torch.Tensor, eps: float = EPS) -> float:
    """Compute the mean condition number of the slices of `[experts, a, b]`."""
    return sum(condition_number(each, eps) for each in weight) / len(weight)


def candidates(
    named: Iterable[tuple[str, torch.Tensor]], largest: int | None = LARGEST, skip: Collection[str] = ()
) -> list[Candidate]:
    """List the tensors that may be chosen, in their order: those of two dimensions or more, none of them longer than
    `largest` (of an experts' tensor: but the first). `skip` names tensors to leave out."""
    found = []
    for name, weight in named:
        if weight.ndim < 2 or name in skip:
            continue
        experts = weight.ndim == 3 and name.rpartition(".")[2] in EXPERTS
        sides = weight.shape[1:] if experts else weight.shape
        if largest is not None and max(sides) > largest:
            continue
        kappa = experts_condition_number(weight) if experts else condition_number(weight)
        found.append(Candidate(name, kappa, tuple(weight.shape), experts))
    return found


def ranked(found: Sequence[Candidate], by_shape: bool = False) -> list[Candidate]:
    """Sort by kappa, ties in their order.

    `by_shape` sorts by the place among tensors of the same shape instead: a Gaussian 64 x 64 matrix has a kappa of some
    200 and a 64 x 256 one of 3, so that the plain ranking mostly picks wide and tall tensors. An addition.
    """
    order = sorted(found, key=lambda each: each.kappa)
    if not by_shape:
        return order
    places: dict[str, float] = {}
    for _, group in groupby(sorted(order, key=lambda each: each.shape), key=lambda each: each.shape):
        members = list(group)
        places |= {each.name: (place + 0.5) / len(members) for place, each in enumerate(members)}
    return sorted(order, key=lambda each: places[each.name])


def choose(order: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Take the first of a ranking, as far as the budget goes. Experts' tensors are cut apart from the others.

    Raises:
        ValueError: nothing is within the budget's threshold, or there is nothing to choose from.
    """
    chosen: list[Candidate] = []
    for experts in (False, True):
        chosen += _cut([each for each in order if each.experts is experts], budget)
    if not chosen:
        raise ValueError("no tensor to train is within the budget: raise it")
    return chosen


def _cut(order: Sequence[Candidate], budget: Budget) -> Sequence[Candidate]:
    if not order:
        return ()
    if budget.count is not None:
        return order[: budget.count]
    if budget.parameters is not None:
        total, taken = 0, 0
        while taken < len(order) and (total := total + order[taken].parameters) <= budget.parameters:
            taken += 1
        return order[: max(1, taken)]
    if budget.threshold is not None:
        return [each for each in order if each.kappa <= budget.threshold]
    return order[: max(1, int(budget.share * len(order)))]


def cached(
    named: Sequence[tuple[str, torch.Tensor]], file: Path, largest: int | None = LARGEST, skip: Collection[str] = ()
) -> list[Candidate]:
    """Return `candidates`, from a JSON file where that was made of the same weights, and else write it there."""
    digest = _digest(named, largest, skip)
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["weights"] == digest:
            return [Candidate(n, math.inf if k is None else k, tuple(s), e) for n, k, s, e in kept["candidates"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: it is made again
    found = candidates(named, largest, skip)
    rows = [(each.name, each.kappa if math.isfinite(each.kappa) else None, each.shape, each.experts) for each in found]
    content = json.dumps({"weights": digest, "candidates": rows}, indent=0)
    job.replace_file(file, lambda path: path.write_text(content + "\n", encoding="utf-8"))
    return found


def _digest(named: Sequence[tuple[str, torch.Tensor]], largest: int | None, skip: Collection[str]) -> str:
    """Return a SHA-256 of the tensors, their names, and what decides which are candidates."""
    sha = hashlib.sha256(json.dumps([largest, sorted(skip)]).encode())
    for name, weight in named:
        sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        sha.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def matched_rank(chosen: Iterable[tuple[int, int]], every: Iterable[tuple[int, int]], rank: int) -> int:
    """Return the LoRA rank at which adapters of the chosen layers have as many parameters as those of every layer at
    `rank`, or just fewer. A layer is its input and output size."""
    return max(1, rank * sum(a + b for a, b in every) // sum(a + b for a, b in chosen))
