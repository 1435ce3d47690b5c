"""Top-W (arXiv 2602.10346): keep the set of tokens that weighs geometry, entropy and mass against each other.

`waver.entropy.surrogate` has the objective that a set S maximises, given a potential f of distances to the set before.
f is made from S, S from f, a few times: S starts as the most likely tokens with `warm_mass` of the pool's mass.

Two proofs avoid work that cannot change the result:

- With the nearest-set potential f is 0 inside the first set and <= 0 outside. If the best set for f = 0, a prefix by
  probability, lies inside the first set, then nothing beats it for any geometry, and it is where the alternation
  ends: no distances are computed.
- No token below a bound is in a best set, whatever the distances are. Such tokens are not looked at, and where only the
  top token passes, no distances are computed either.

The surrogate is reproduced as published. It rewards compact sets; it does not bound the Wasserstein distance.
The top token is always kept: with the nearest-set potential by itself, with k-NN because it is put back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from waver.devices import to_device
from waver.entropy.geometry import BLOCK, CACHED, Geometry, pairwise_distances, potential
from waver.entropy.surrogate import (
    FIRST_POOL,
    SLACK,
    ParameterTable,
    Weights,
    count_candidates,
    make_table,
    mass_bound,
    prefix_objectives,
)
from waver.entropy.truncation import Crop, keep_ranked, rank_progressively

MAX_DISTANCE = 2.0
"""Largest possible distance of two tokens, by either metric."""
ROUNDING = 1e-5
"""Largest rounding error of a distance in float32."""
MIN_LOGPROB = -1e4
"""Finite stand-in for a log-probability of -inf, which may be multiplied."""
EXCLUDED = -1e9
"""The φ of a token that is no candidate: below all others."""


def top_w(logits: torch.Tensor, how: Sequence[Weights], geometry: Geometry | None = None) -> Crop:
    """Truncate `[rows, vocab]` logits after temperature.

    Args:
        how: the parameters of each row. They are on the host, where the control flow is decided.
        geometry: from `waver.entropy.geometry.whiten`; it is read, or made, only if a row needs it, and may be left out
            where none does.

    Raises:
        ValueError: a row needs the geometry, and there is none.
    """
    vocab = logits.shape[-1]
    table = make_table(how, vocab, logits.device)
    widest = min(max(own.pool for own in how), vocab)
    if reaches_all := [row for row, own in enumerate(how) if own.reaches_all]:
        index = to_device(reaches_all, logits.device)
        widest = max(widest, _count_reachable(logits[index], ParameterTable.of(table[index])))
    shallowest = min(own.pool for own in how)
    sharpened = any(own.sharpness != 1.0 for own in how)
    acting, flat = any(own.moves_sets for own in how), not all(own.moves_sets for own in how)
    # The end of a first set with most of the mass is not among the first few tokens.
    small = any(own.warm_mass < 0.5 for own in how)

    def attempt(width: int, logits: torch.Tensor, table: torch.Tensor) -> tuple[Crop, torch.Tensor]:
        own, whole = ParameterTable.of(table), width >= widest
        values, ids = logits.topk(width, dim=-1)
        logw = values.double() - values[:, :1]
        if sharpened:
            logw *= own.sharpness
        logw.clamp_(min=MIN_LOGPROB)
        place = torch.arange(width, device=logits.device)
        if shallowest < width:
            logw.masked_fill_(place >= own.reach, MIN_LOGPROB)
        if width > FIRST_POOL and not flat:  # the first tokens did not decide these rows
            n = torch.ones_like(own.pool)
            undecided = n > 0
        else:
            n, undecided = without_geometry(logw, own, whole)
            if acting:
                moves_sets = own.geometry * own.neighbours > 0
                undecided = torch.where(moves_sets, may_keep_more(logw, own, potential_floor(own), whole), undecided)
                if not whole and len(rest := (undecided & moves_sets).nonzero()[:, 0]):
                    some, its = logw[rest], ParameterTable.of(table[rest])
                    undecided[rest] = may_keep_more(
                        some, its, measured_potential_floor(some, ids[rest], its, _resolve(geometry)), whole
                    )
        drop = place >= n
        if (whole or small) and len(rest := undecided.nonzero()[:, 0]):
            some, rows = logw[rest], table[rest]
            count, warm = set_sizes(some, rows, whole)
            if whole or int(torch.maximum(count, warm).max()) <= width:
                sets = alternate(some, rows, ids[rest], count, warm, _resolve(geometry))
                drop[rest] = torch.nn.functional.pad(~sets, (0, width - sets.shape[1]), value=True)
                drop[:, 0] = False
                undecided = torch.zeros_like(undecided)
        return keep_ranked(logits, values, ids, drop), undecided

    return rank_progressively(attempt, (FIRST_POOL, widest) if widest > FIRST_POOL else (widest,), logits, table)


def without_geometry(logw: torch.Tensor, own: ParameterTable, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the length of the best prefix by probability for f = 0, and whether another set may be better for a
    potential that is 0 inside the first set: `[rows, 1]` each. A row without any token has NaN everywhere, and is
    decided.

    Args:
        logw: `[rows, n]` descending log-probabilities relative to the first, at least `MIN_LOGPROB`.
        whole: these are all tokens within reach; else they are `FIRST_POOL`.
    """
    weights, phi = logw.exp(), own.entropy * logw
    mass = weights.cumsum(-1)
    best, last = prefix_objectives(weights, mass, phi, own.surplus).max(-1, keepdim=True)
    undecided = last > torch.searchsorted(mass, own.warm_mass * mass[:, -1:])
    if not whole:
        most = mass_bound(weights, mass, own, whole)
        undecided |= phi[:, -1:] >= best - torch.addcmul(own.margin, own.surplus, most.log())
    return last + 1, undecided


def may_keep_more(logw: torch.Tensor, own: ParameterTable, top: torch.Tensor, whole: bool) -> torch.Tensor:
    """Return whether more than the top token may be in a best set, for k-NN potentials of `top` or more at the top
    token and 0 or less everywhere: `[rows, 1]`; the other arguments as above. Where the first set has such a potential
    and the answer is no, the alternation ends with the top token: as its own only member it has the potential 0."""
    weights = logw.exp()
    mass = weights.cumsum(-1)
    best = own.geometry * top
    count = count_candidates(own.entropy * logw, mass, mass_bound(weights, mass, own, whole), best, own)
    return (count > 1) & (mass[:, -1:] > 0)


def potential_floor(own: ParameterTable) -> torch.Tensor:
    """Bound the potential of the top token from below: it is in the first set, and so one of its own k neighbours."""
    return MAX_DISTANCE / own.neighbours.clamp(min=1) - MAX_DISTANCE


def measured_potential_floor(
    logw: torch.Tensor, ids: torch.Tensor, own: ParameterTable, geometry: torch.Tensor
) -> torch.Tensor:
    """Bound the potential of the top token from below by those that are ranked: its k nearest of all members are no
    farther from it than its k nearest of these, if there are k."""
    members = first_set(logw.exp().cumsum(-1), own)
    inside = torch.arange(logw.shape[-1], device=logw.device) < members
    f = potential(pairwise_distances(geometry, ids, 1, own.chord > 0), inside, own.neighbours).double() - ROUNDING
    return f.where(members >= own.neighbours, potential_floor(own))


def first_set(mass: torch.Tensor, own: ParameterTable) -> torch.Tensor:
    """Count the tokens of the first set by the running sums of those that are ranked; a lower bound if more follow."""
    pooled = mass.gather(-1, (own.pool.long() - 1).clamp_(max=mass.shape[-1] - 1))
    return torch.searchsorted(mass, own.warm_mass * pooled) + 1


def set_sizes(logw: torch.Tensor, table: torch.Tensor, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the first tokens that may be in a best set, and those of the first set: `[rows, 1]` each, more than there
    are where that is not known. `logw` and `whole` as above."""
    own, width = ParameterTable.of(table), logw.shape[-1]
    weights = logw.exp()
    mass = weights.cumsum(-1)
    most = mass_bound(weights, mass, own, whole)
    far = torch.where(own.neighbours > 0, -MAX_DISTANCE * own.geometry, 0.0)
    count = count_candidates(own.entropy * logw, mass, most, far, own)
    warm = first_set(mass, own)
    if not whole:
        latest = torch.searchsorted(mass, own.warm_mass * most) + 1
        count, warm = (
            torch.where(known, n, width + 1) for known, n in ((count < width, count), (warm == latest, warm))
        )
    return count, warm


def alternate(
    logw: torch.Tensor,
    table: torch.Tensor,
    ids: torch.Tensor,
    count: torch.Tensor,
    warm: torch.Tensor,
    geometry: torch.Tensor,
) -> torch.Tensor:
    """Alternate between the potential of a set and the best set for a potential, until the set stays or the iterations
    are used up. Returns which of the first ranked tokens it contains, `[rows, n]` bool; no set contains later ones.

    Args:
        logw: `[rows, width]` descending log-probabilities relative to the first, of the tokens `ids`.
        count, warm: from `set_sizes`, at most `width`.
    """
    n, m = torch.cat([count, warm], dim=1).amax(0).tolist()
    m = max(n, m)
    if len(ids) == 1 or len(ids) * n * m <= (BLOCK if ids.is_cuda else CACHED):
        return _alternate(logw[:, :n], table, ids[:, :m], count, warm, geometry)
    sets = torch.zeros(len(ids), n, dtype=torch.bool, device=ids.device)
    for half in count[:, 0].argsort().chunk(2):  # rows with about as many candidates go together
        found = alternate(logw[half, :n], table[half], ids[half, :m], count[half], warm[half], geometry)
        sets[half, : found.shape[1]] = found
    return sets


def _alternate(
    logw: torch.Tensor,
    table: torch.Tensor,
    ids: torch.Tensor,
    count: torch.Tensor,
    warm: torch.Tensor,
    geometry: torch.Tensor,
) -> torch.Tensor:
    own, n = ParameterTable.of(table), logw.shape[1]
    gaps = pairwise_distances(geometry, ids, n, own.chord > 0)
    place = torch.arange(ids.shape[1], device=ids.device)
    weights = logw.exp().masked_fill_(place[:n] >= count, 0.0)
    level = (own.entropy * logw).masked_fill_(weights == 0, EXCLUDED)
    single = own.surplus <= 0
    inside = place < warm
    step, before = 0, None
    while before is None or not torch.equal(inside, before):
        before = inside
        phi = torch.addcmul(level, own.geometry, potential(gaps, inside, own.neighbours).double())
        phi, order = phi.sort(dim=-1, descending=True, stable=True)
        there = weights.gather(-1, order)
        last = prefix_objectives(there, there.cumsum(-1), phi, own.surplus).argmax(-1, keepdim=True)
        last.masked_fill_(single, 0)  # tokens of one φ tie, but for rounding
        inside = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, order, place[:n] <= last)
        if step:
            inside = inside.where(own.iterations > step, before)
        step, gaps = step + 1, gaps[:, :, :n]
    return inside


def _count_reachable(logits: torch.Tensor, own: ParameterTable) -> int:
    """Count the tokens of the whole vocabulary that could be some row's single best one, for any potential."""
    logw = (logits - logits.amax(-1, keepdim=True)) * own.sharpness
    return int((own.entropy * logw >= -MAX_DISTANCE * own.geometry - SLACK).sum(-1).max())


def _resolve(geometry: Geometry | None) -> torch.Tensor:
    if geometry is None:
        raise ValueError("Top-W needs the whitened embedding matrix here")
    return geometry if isinstance(geometry, torch.Tensor) else geometry()
