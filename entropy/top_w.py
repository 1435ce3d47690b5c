"""Top-W (arXiv 2602.10346): keep the set of tokens that weighs geometry, entropy and mass against each other.

With p the distribution, Γ the mass of a set S, q = p/Γ on S and f a potential of distances to the set before, S
maximises

    J(S) = g E_q[f] - λ H(q) + β log Γ = A/Γ + (β - λ) log Γ,   A = Σ_S p φ,   φ = g f + λ log p.

- β >= λ: some optimum is a prefix of the order of descending φ (theorem 3.4a); one cumulative scan finds it.
- β <= λ: an optimum is the one token with the largest g f + β log p, of the whole vocabulary (3.4b).
- f is made from S, S from f, a few times: S starts as the most likely tokens with `warm_mass` of the pool's mass.
- J of unnormalised p differs by a constant, so nothing here needs the vocabulary's normaliser, and log p comes straight
  from the logits, which needs no floor under it.

Two proofs spare the work that cannot matter:

- With the nearest-set potential f is 0 inside the first set and <= 0 outside. If the best set for f = 0, a prefix by
  probability, lies inside the first set, then nothing beats it for any geometry, and it is where the alternation
  ends: no distances are computed.
- A token i of the best set has φ_i >= J(best) - c log Γ(pool) - 2 ln 2 c, with c = β - λ, by what taking it out would
  change; J(best) is at least that of the top token alone. Tokens below that are not looked at.

The surrogate is reproduced as published. It rewards compact sets; it does not bound the Wasserstein distance.
The top token is always kept: with the nearest-set potential by itself, with k-NN because it is put back.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from entropy.geometry import BLOCK, Geometry, potential
from entropy.truncation import Crop, ranked, widening

QUICK = 64
"""Tokens that are ranked at first: where these prove what is best, the pool is not."""
SLACK = 1e-6
"""Nats that bounds are widened by, for rounding."""
FARTHEST = 2.0
"""No two tokens are farther apart, by either distance."""
LEAST = -1e4
"""Stands for a log-probability of -inf where it is multiplied."""


class Weights(NamedTuple):
    """Parameters, each `[rows]`: λ, β, tokens in the pool, the first set's share of its mass, alternations, g, k of the
    k-NN potential (0 for the nearest-set potential), whether distances are chords, and the temperature that the logits
    were divided by over the one to select at."""

    entropy: torch.Tensor
    mass: torch.Tensor
    pool: torch.Tensor
    warm_mass: torch.Tensor
    iterations: torch.Tensor
    geometry: torch.Tensor
    neighbours: torch.Tensor
    chord: torch.Tensor
    sharpness: torch.Tensor

    def rows(self, index: torch.Tensor) -> Weights:
        return Weights(*(each[index] for each in self))

    @property
    def single(self) -> torch.Tensor:
        """Rows whose best set is one token."""
        return self.mass <= self.entropy

    @property
    def flat(self) -> torch.Tensor:
        """Rows in which no potential has a say inside a set."""
        return (self.geometry == 0) | (self.neighbours == 0)


def scan(logw: torch.Tensor, phi: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """J of every prefix of tokens in the order of descending φ: `[rows, n]` float64.

    Args:
        logw: `[rows, n]` log-probabilities, up to a constant of each row; `-inf` where there is no token.
        phi: `[rows, n]`, descending. c: `[rows]`, β - λ >= 0.
    """
    weights = logw.exp()
    mass = weights.cumsum(-1)
    total = (weights * phi).masked_fill(weights == 0, 0.0).cumsum(-1)
    return (total / mass + c[:, None] * mass.log()).masked_fill(logw == -torch.inf, -torch.inf)


def top_w(logits: torch.Tensor, how: Weights, geometry: Geometry | None = None) -> Crop:
    """Truncate `[rows, vocab]` logits after temperature.

    Args:
        geometry: from `entropy.geometry.whiten`; it is looked at, or made, only if a row comes to need it, and may be
            left out where none does.

    Raises:
        ValueError: a row needs the geometry, and there is none.
    """
    wide = (how.single & ~how.flat).nonzero()[:, 0]
    widest = int(torch.cat([how.pool, _reach(logits[wide], how.rows(wide))]).max())

    def attempt(width: int, logits: torch.Tensor, *parameters: torch.Tensor) -> tuple[Crop, torch.Tensor]:
        how = Weights(*parameters)
        values, ids = logits.topk(width, dim=-1)
        logw = (values - values[:, :1]).double() * how.sharpness[:, None]
        logw = logw.nan_to_num(nan=-torch.inf, neginf=-torch.inf)  # a row without any token has no differences
        logw[:, 0] = 0.0
        n, warm, settled = without_geometry(logw, how, whole=width == logits.shape[-1])
        keep = _first(n, width)
        if width >= min(widest, logits.shape[-1]) and len(rest := (~settled).nonzero()[:, 0]):
            if geometry is None:
                raise ValueError("Top-W needs the whitened embedding matrix here")
            matrix = geometry if isinstance(geometry, torch.Tensor) else geometry()
            keep[rest] = alternate(logw[rest], ids[rest], warm[rest], how.rows(rest), matrix)
        keep[:, 0] = True
        return ranked(logits, values, ids, keep), settled

    few = widest > QUICK and bool(how.flat.any())  # with k-NN the first set needs the whole pool
    return widening(attempt, (QUICK, widest) if few else (widest,), logits, *how)


def without_geometry(logw: torch.Tensor, how: Weights, whole: bool) -> tuple[torch.Tensor, ...]:
    """The best prefix by probability for f = 0, the length of the first set S, and whether the former is the answer for
    any geometry: `[rows]` each.

    Args:
        logw: `[rows, n]` descending log-probabilities relative to the first; `whole`: these are all there are.
    """
    width = logw.shape[-1]
    logw = logw.masked_fill(~_first(how.pool, width), -torch.inf)
    c = (how.mass - how.entropy).clamp(min=0)
    values = scan(logw, how.entropy[:, None] * logw.clamp(min=LEAST), c)
    n = torch.where(how.single, 1, values.argmax(-1) + 1)
    mass = logw.exp().cumsum(-1)
    warm = (mass < how.warm_mass[:, None] * mass[:, -1:]).sum(-1) + 1
    # What follows the last token seen weighs no more than that one.
    last, unseen = logw[:, -1], (how.pool - width).clamp(min=0) * (not whole)
    most = (mass[:, -1] + unseen * last.exp()).log()
    complete = (unseen == 0) | (how.entropy * last.clamp(min=LEAST) < _least(values.amax(-1), most, how))
    inside = (how.geometry == 0) | (n <= warm)
    return n, warm, how.flat & (how.single | (complete & inside))


def alternate(
    logw: torch.Tensor, ids: torch.Tensor, warm: torch.Tensor, how: Weights, geometry: torch.Tensor
) -> torch.Tensor:
    """Potential from set, set from potential, until the set stays or the iterations are used up: which of the ranked
    tokens it holds, `[rows, n]` bool.

    Args:
        logw: `[rows, n]` descending log-probabilities relative to the first, of the tokens `ids`: the pool at least.
        warm: `[rows]`, how many of the first tokens make the first set.
    """
    width = logw.shape[-1]
    pool = logw.masked_fill(~_first(how.pool, width), -torch.inf)
    far = torch.where(how.neighbours > 0, -FARTHEST * how.geometry, 0.0)
    least = _least(far, pool.logsumexp(-1), how)
    candidate = torch.where(
        how.single[:, None],
        how.mass[:, None] * logw.clamp(min=LEAST) >= (far - SLACK)[:, None],
        (how.entropy[:, None] * logw.clamp(min=LEAST) >= least[:, None]) & (pool > -torch.inf),
    ) & (logw > -torch.inf)
    n = int(candidate.sum(-1).max())
    member = _first(warm, width)
    share = max(1, BLOCK // (max(n, int(warm.max())) * geometry.shape[1]))
    for block in torch.arange(len(ids), device=ids.device).split(share):
        active = block
        for step in range(int(how.iterations[block].max())):
            own = how.rows(active)
            sets = _set_step(logw[active], ids[active], candidate[active, :n], member[active], own, geometry)
            changed = (sets != member[active]).any(-1)
            member[active] = sets
            active = active[changed & (own.iterations > step + 1)]
            if not len(active):
                break
    return member


def _set_step(
    logw: torch.Tensor,
    ids: torch.Tensor,
    candidate: torch.Tensor,
    member: torch.Tensor,
    how: Weights,
    geometry: torch.Tensor,
) -> torch.Tensor:
    """One alternation: the next set, `[rows, width]` bool."""
    n = candidate.shape[-1]
    inside, place = member.sort(dim=-1, descending=True, stable=True)
    m = int(member.sum(-1).max())
    members, inside = ids.gather(-1, place[:, :m]), inside[:, :m]
    f = potential(geometry, ids[:, :n], members, inside, how.chord, how.neighbours).double()
    weight = torch.where(how.single, how.mass, how.entropy)
    phi = how.geometry[:, None] * f + weight[:, None] * logw[:, :n]
    phi, order = phi.masked_fill(~candidate, -torch.inf).sort(dim=-1, descending=True, stable=True)
    there = logw[:, :n].masked_fill(~candidate, -torch.inf).gather(-1, order)
    best = scan(there, phi, how.mass - how.entropy).argmax(-1) + 1
    chosen = _first(torch.where(how.single, 1, best), n)
    return torch.zeros_like(member).scatter_(-1, order, chosen)


def _least(best: torch.Tensor, mass: torch.Tensor, how: Weights) -> torch.Tensor:
    """λ log p below which no token is in a best set (the bound of the module's docstring): `[rows]`. `best` is the J of
    some set, `mass` the logarithm of the pool's mass."""
    c = how.mass - how.entropy
    return best - c * mass - 2 * math.log(2) * c - SLACK


def _reach(logits: torch.Tensor, how: Weights) -> torch.Tensor:
    """How many tokens of the whole vocabulary could be a row's single best one, for any potential: `[rows]`."""
    logw = (logits - logits.amax(-1, keepdim=True)) * how.sharpness[:, None]
    return (how.mass[:, None] * logw >= -FARTHEST * how.geometry[:, None] - SLACK).sum(-1)


def _first(n: torch.Tensor, width: int) -> torch.Tensor:
    """`[rows, width]` masks of the first `n`."""
    return torch.arange(width, device=n.device) < n[:, None]
