"""The objective of Top-W (arXiv 2602.10346): its parameters for a batch, its value for prefixes, and a bound on the
tokens of a best set.

With p the distribution, Γ the mass of a set S, q = p/Γ on S and f a potential of distances to the set before, S
maximises

    J(S) = g E_q[f] - λ H(q) + β log Γ = A/Γ + c log Γ,   A = Σ_S p φ,   φ = g f + λ log p,   c = β - λ.

- β >= λ: some optimum is a prefix of the order of descending φ (theorem 3.4a); one cumulative prefix_objectives finds
it.
- β <= λ: an optimum is the one token with the largest g f + β log p, of the whole vocabulary (3.4b). The same
  prefix_objectives finds it with λ lowered to β.
- J of unnormalised p differs by a constant, so nothing here needs the vocabulary's normaliser, and log p comes straight
  from the logits, which needs no floor under it.
- A token i of the best set has φ_i >= J(best) - c (log Γ(best) + 1). Taking it out, with w its share of the mass,
  changes J by (A/Γ - φ_i) w/(1-w) + c log(1-w), which is not more than 0, and (1-w) log(1-w) >= -w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from waver.devices import to_device

FIRST_POOL = 64
"""Tokens that are ranked at first; the whole pool is ranked only where these do not prove the best set."""
SLACK = 1e-6
"""Nats by which bounds are widened, for rounding."""
NARROWINGS = 2
"""Rounds in which the bound on the tokens of a best set is tightened by the mass of those that remain."""


class Weights(NamedTuple):
    """The parameters of one row: λ, β, tokens in the pool, the first set's share of its mass, alternations, g, k of the
    k-NN potential (0 for the nearest-set potential), whether distances are chords, and the temperature that the logits
    were divided by over the one to select at."""

    entropy: float
    mass: float
    pool: int
    warm_mass: float
    iterations: int
    geometry: float
    neighbours: int
    chord: bool
    sharpness: float

    @property
    def moves_sets(self) -> bool:
        """Return whether the potential can differ between tokens inside a set."""
        return self.geometry > 0 and self.neighbours > 0

    @property
    def reaches_all(self) -> bool:
        """Return whether a token outside the pool may be the best one."""
        return self.moves_sets and self.mass <= self.entropy


class ParameterTable(NamedTuple):
    """The `Weights` of a batch in the form of the formulas: `[rows, 1]` float64 each, on the device of the logits.

    `entropy` is λ or, if it is less, β; `surplus` is β minus that (c), and `margin` the bound's share of it. `reach`
    counts the tokens that may be in a best set, `unseen` those of them that are not among the first `FIRST_POOL`.
    """

    entropy: torch.Tensor
    surplus: torch.Tensor
    margin: torch.Tensor
    pool: torch.Tensor
    reach: torch.Tensor
    unseen: torch.Tensor
    warm_mass: torch.Tensor
    iterations: torch.Tensor
    geometry: torch.Tensor
    neighbours: torch.Tensor
    chord: torch.Tensor
    sharpness: torch.Tensor

    @classmethod
    def of(cls, table: torch.Tensor) -> ParameterTable:
        """Unpack what `make_table` gives."""
        return cls(*table.unbind(-1))


def make_table(how: Sequence[Weights], vocab: int, device: torch.device) -> torch.Tensor:
    """Compute the columns of `ParameterTable`: `[rows, 1, 12]`."""
    rows = []
    for own in how:
        low, pool = min(own.entropy, own.mass), min(own.pool, vocab)
        reach = vocab if own.reaches_all else pool
        unseen = max(reach - FIRST_POOL, 0)
        margin = own.mass - low + SLACK if unseen else -math.inf  # there is no unseen token to bound
        warm = own.warm_mass if own.geometry > 0 else math.inf  # without geometry any first set will do
        rows.append(((low, own.mass - low, margin, pool, reach, unseen, warm, *own[4:]),))
    return to_device(rows, device, torch.float64)


def prefix_objectives(
    weights: torch.Tensor, mass: torch.Tensor, phi: torch.Tensor, surplus: torch.Tensor
) -> torch.Tensor:
    """Compute J of every prefix of tokens in the order of descending φ: `[rows, n]` float64.

    Args:
        weights: `[rows, n]` probabilities, up to a factor of each row; 0 where there is no token, but not in the first
            place. mass: their running sums.
        phi: `[rows, n]`, descending, finite. surplus: `[rows, 1]`, β - λ >= 0.
    """
    return torch.addcmul((weights * phi).cumsum(-1) / mass, surplus, mass.log())


def count_candidates(
    level: torch.Tensor, mass: torch.Tensor, most: torch.Tensor, best: torch.Tensor, own: ParameterTable
) -> torch.Tensor:
    """Count the first tokens that may be in a best set: `[rows, 1]`.

    Args:
        level: `[rows, n]` λ log p, descending. mass: running sums of p.
        most: `[rows, 1]`, what all tokens within reach weigh at most. best: the J of some set.
    """
    loss = -level
    known = torch.cat([mass[:, :1], mass[:, :-1], most], dim=1)  # by the number of candidates, their largest mass
    bound = own.surplus + SLACK - best
    n = torch.searchsorted(loss, torch.addcmul(bound, own.surplus, most.log()), right=True)
    for _ in range(NARROWINGS):
        n = torch.searchsorted(loss, torch.addcmul(bound, own.surplus, known.gather(-1, n).log()), right=True)
    return n


def mass_bound(weights: torch.Tensor, mass: torch.Tensor, own: ParameterTable, whole: bool) -> torch.Tensor:
    """Bound the mass of all tokens within reach: each one that is not ranked has at most that of the last ranked
    one."""
    return mass[:, -1:] if whole else torch.addcmul(mass[:, -1:], own.unseen, weights[:, -1:])
