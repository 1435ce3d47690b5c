"""The objective of Top-W (arXiv 2602.10346): its parameters for a batch, its best prefix, and who can be in a best set.

With p the distribution, Γ the mass of a set S, q = p/Γ on S and f a potential of distances to the set before, S
maximises

    J(S) = g E_q[f] - λ H(q) + β log Γ = A/Γ + c log Γ,   A = Σ_S p φ,   φ = g f + λ log p,   c = β - λ.

- β >= λ: some optimum is a prefix of the order of descending φ (theorem 3.4a); one cumulative scan finds it.
- β <= λ: an optimum is the one token with the largest g f + β log p, of the whole vocabulary (3.4b). The same scan
  finds it with λ lowered to β.
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

from waver.entropy.sending import send

QUICK = 64
"""Tokens that are ranked at first: where these prove what is best, the pool is not."""
SLACK = 1e-6
"""Nats that bounds are widened by, for rounding."""
NARROWINGS = 2
"""How often the tokens that may be in a best set are told anew from the mass of those that may."""


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
    def acts(self) -> bool:
        """Whether the potential has a say inside a set."""
        return self.geometry > 0 and self.neighbours > 0

    @property
    def everywhere(self) -> bool:
        """Whether any token may be the best, also one that is not in the pool."""
        return self.acts and self.mass <= self.entropy


class Columns(NamedTuple):
    """The `Weights` of a batch as the formulas have them, `[rows, 1]` float64 each, where the logits are.

    `entropy` is λ or, if it is less, β; `surplus` is β minus that (c), and `margin` the bound's share of it. `reach`
    counts the tokens that may be in a best set, `unseen` those of them that are not among the first `QUICK`.
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
    def of(cls, table: torch.Tensor) -> Columns:
        return cls(*table.unbind(-1))


def tabulate(how: Sequence[Weights], vocab: int, device: torch.device) -> torch.Tensor:
    """The numbers of `Columns`: `[rows, 1, 12]`."""
    rows = []
    for own in how:
        low, pool = min(own.entropy, own.mass), min(own.pool, vocab)
        reach = vocab if own.everywhere else pool
        unseen = max(reach - QUICK, 0)
        margin = own.mass - low + SLACK if unseen else -math.inf  # what is not there passes no bound
        warm = own.warm_mass if own.geometry > 0 else math.inf  # without geometry any first set will do
        rows.append(((low, own.mass - low, margin, pool, reach, unseen, warm, *own[4:]),))
    return send(rows, device, torch.float64)


def scan(weights: torch.Tensor, mass: torch.Tensor, phi: torch.Tensor, surplus: torch.Tensor) -> torch.Tensor:
    """J of every prefix of tokens in the order of descending φ: `[rows, n]` float64.

    Args:
        weights: `[rows, n]` probabilities, up to a factor of each row; 0 where there is no token, but not in the first
            place. mass: their running sums.
        phi: `[rows, n]`, descending, finite. surplus: `[rows, 1]`, β - λ >= 0.
    """
    return torch.addcmul((weights * phi).cumsum(-1) / mass, surplus, mass.log())


def candidates(
    level: torch.Tensor, mass: torch.Tensor, most: torch.Tensor, best: torch.Tensor, own: Columns
) -> torch.Tensor:
    """How many of the first tokens may be in a best set: `[rows, 1]`.

    Args:
        level: `[rows, n]` λ log p, descending. mass: running sums of p.
        most: `[rows, 1]`, what all tokens within reach weigh at most. best: the J of some set.
    """
    loss = -level
    known = torch.cat([mass[:, :1], mass[:, :-1], most], dim=1)  # by the number of candidates, what they weigh at most
    bound = own.surplus + SLACK - best
    n = torch.searchsorted(loss, torch.addcmul(bound, own.surplus, most.log()), right=True)
    for _ in range(NARROWINGS):
        n = torch.searchsorted(loss, torch.addcmul(bound, own.surplus, known.gather(-1, n).log()), right=True)
    return n


def heaviest(weights: torch.Tensor, mass: torch.Tensor, own: Columns, whole: bool) -> torch.Tensor:
    """What all tokens within reach weigh at most: those that are not seen no more than the last one that is."""
    return mass[:, -1:] if whole else torch.addcmul(mass[:, -1:], own.unseen, weights[:, -1:])
