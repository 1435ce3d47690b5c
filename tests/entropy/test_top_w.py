"""Top-W: reference figures, an independent implementation, every subset of small vocabularies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tests.entropy import reference
from tests.entropy.test_truncation import sets
from waver.entropy import truncation
from waver.entropy.geometry import distances, pairwise_distances, potential, whiten
from waver.entropy.surrogate import FIRST_POOL, ParameterTable, Weights, make_table, prefix_objectives
from waver.entropy.top_w import (
    MIN_LOGPROB,
    alternate,
    may_keep_more,
    measured_potential_floor,
    potential_floor,
    set_sizes,
    top_w,
    without_geometry,
)

DEFAULTS: dict[str, Any] = {
    "entropy": 2.2,
    "mass": 2.8,
    "pool": 1200,
    "warm_mass": 0.999,
    "iterations": 9,
    "geometry": 0.6,
    "neighbours": 0,
    "chord": False,
    "sharpness": 1.0,
}
P = (0.4, 0.3, 0.2, 0.1)


def weights(rows: int = 1, **options: Any) -> list[Weights]:
    """Parameters, one value for all rows or one for each."""
    columns = {name: v if isinstance(v, list) else [v] * rows for name, v in (DEFAULTS | options).items()}
    return [Weights(**dict(zip(columns, own, strict=True))) for own in zip(*columns.values(), strict=True)]


def values(logp: torch.Tensor, phi: torch.Tensor, surplus: float) -> torch.Tensor:
    """J of every prefix of one row."""
    weight = logp.exp()
    return prefix_objectives(weight, weight.cumsum(-1), phi, torch.tensor([[surplus]], dtype=torch.float64))[0]


def logs(*p: float) -> torch.Tensor:
    return torch.tensor([p], dtype=torch.float64).log()


def at_angles(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def one(logits: torch.Tensor, embedding: torch.Tensor | None = None, **options: Any) -> set[int]:
    return sets(top_w(logits.float(), weights(**options), embedding))[0]


def to_set(geometry: torch.Tensor, members: Sequence[int], neighbours: int = 0, chord: bool = False) -> list[float]:
    ids = torch.arange(len(geometry))[None]
    gaps = pairwise_distances(geometry, ids, len(geometry), torch.tensor([[chord]]))
    inside = torch.isin(ids, torch.tensor(list(members)))
    found: list[float] = potential(gaps, inside, torch.tensor([[neighbours]]))[0].tolist()
    return found


@pytest.mark.parametrize(
    ("p", "lam", "j", "kept"),
    [
        (P, 2.2, (-2.565614, -2.501088, -2.628895, -2.815679), {0, 1}),
        (P, 1.0, (-2.565614, -1.681598, -1.355866, -1.279854), {0, 1, 2, 3}),
        ((0.4, 0.25, 0.15, 0.1, 0.06, 0.04), 2.2, (-2.56561, -2.67200, -2.87745, -3.06479, -3.22531, -3.35605), {0}),
    ],
)
def test_checks_1_and_5_prefixes(p: Sequence[float], lam: float, j: Sequence[float], kept: set[int]) -> None:
    logp = logs(*p)
    found = values(logp, lam * logp, 2.8 - lam).tolist()
    assert found == pytest.approx(j, abs=5e-6 if len(p) > 4 else 5e-7)
    assert one(logp, entropy=lam) == kept


def test_check_2_potential_and_prefixes() -> None:
    geometry, logp = at_angles(0, 10, 90, 100), logs(*P)
    f = to_set(geometry, [0])
    assert f == pytest.approx((0, -0.015192, -1, -1.173648), abs=5e-7)
    for g, j, kept in (
        (1.0, (-2.565614, -1.688109, -1.583153, -1.601777), {0, 1, 2}),
        (3.0, (-2.565614, -1.701131, -2.037725, -2.245622), {0, 1}),
    ):
        phi = g * torch.tensor([f]) + logp
        assert values(logp, phi, 1.8).tolist() == pytest.approx(j, abs=5e-7)
        how = {"entropy": 1.0, "geometry": g, "warm_mass": 0.3}
        assert one(logp, geometry, **how, iterations=1) == kept


def test_check_3_order_and_path() -> None:
    geometry, p = at_angles(0, 90, 10, 100), (0.35, 0.25, 0.22, 0.18)
    phi = 2 * torch.tensor(to_set(geometry, [0])) + logs(*p)[0]
    assert phi.tolist() == pytest.approx((-1.049822, -3.386294, -1.544512, -4.062095), abs=1e-6)
    assert phi.argsort(descending=True).tolist() == [0, 2, 1, 3]
    how = {"entropy": 1.0, "warm_mass": 0.3}
    for g, iterations, kept in ((2.0, 1, {0, 1, 2}), (2.0, 9, {0, 1, 2, 3}), (5.0, 9, {0, 2})):
        assert one(logs(*p), geometry, **how, geometry=g, iterations=iterations) == kept
    assert one(logs(*p), geometry, entropy=1.0, warm_mass=1.0, geometry=5.0) == {0, 1, 2, 3}


def wasserstein(p: np.ndarray, q: np.ndarray, d: np.ndarray) -> float:
    """W1 by linear programming over couplings."""
    n = len(p)
    rows = [[i == k for i in range(n) for _ in range(n)] for k in range(n)]
    columns = [[j == k for _ in range(n) for j in range(n)] for k in range(n)]
    solved = linprog(d.ravel(), A_eq=np.array(rows + columns, float), b_eq=[*p, *q])
    return float(solved.fun)


def test_check_4_what_the_surrogate_is_not() -> None:
    geometry, p = at_angles(0, 10, 90, 100), np.array(P)
    d = distances(geometry.double() @ geometry.double().T, torch.tensor(True)).numpy()
    np.fill_diagonal(d, 0.0)

    def crop(kept: Sequence[int]) -> np.ndarray:
        q = np.zeros(4)
        q[list(kept)] = p[list(kept)] / p[list(kept)].sum()
        return q

    assert wasserstein(p, crop((0, 1)), d) == pytest.approx(0.4195124, abs=1e-6)
    assert 0.3 * wasserstein(crop((2, 3)), crop((0, 1)), d) == pytest.approx(0.4195124, abs=1e-6)
    f = np.array(to_set(geometry, [0, 1], chord=True))
    assert float((p - crop((0, 1))) @ f) == pytest.approx(-0.398536, abs=1e-5)
    subsets = [s for k in range(1, 5) for s in itertools.combinations(range(4), k)]
    for lam, best, value, surrogate in ((1.0, (0, 1, 2, 3), 1.27985, None), (2.2, (0, 1, 2), 2.74800, {0, 1})):
        exact = {
            s: wasserstein(p, crop(s), d) + lam * reference.entropy(crop(s)) - 2.8 * math.log(p[list(s)].sum())
            for s in subsets
        }
        assert min(exact, key=lambda s: exact[s]) == best
        assert exact[best] == pytest.approx(value, abs=5e-6)
        if surrogate:
            assert one(logs(*P), geometry, chord=True) == surrogate


def test_check_5_two_tokens_and_uniform() -> None:
    for p, kept in ((0.5870487, {0, 1}), (0.5870489, {0})):
        logp = logs(p, 1 - p)
        assert sets(top_w(logp, weights())) == [kept]
    geometry = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    for n in (1, 2, 10, 64, 65, 700, 1000):
        assert one(torch.zeros(1, n), whiten(geometry[:n]) if n > 1 else None) == set(range(n))


@pytest.mark.parametrize(("lam", "beta"), [(2.2, 2.8), (0.0, 1.0), (2.2, 1.0), (1.5, 1.5)])
def test_check_6_every_subset(lam: float, beta: float) -> None:
    """300 pools of 8 with a random potential: the best prefix, or a single token, is the best of all 255 subsets."""
    rng = np.random.default_rng(6)
    subsets = [list(s) for k in range(1, 9) for s in itertools.combinations(range(8), k)]
    for _ in range(300):
        p, f = rng.dirichlet(np.full(8, 0.7)), -rng.random(8)
        every = {tuple(s): reference.objective(p, dict(enumerate(f)), s, lam, beta, 0.6) for s in subsets}
        best = max(every, key=lambda s: every[s])
        if beta <= lam:
            assert len(best) == 1
            assert best[0] == int(np.argmax(0.6 * f + beta * np.log(p)))
            continue
        phi = torch.from_numpy(0.6 * f + lam * np.log(p))
        order = phi.argsort(descending=True)
        found = values(torch.from_numpy(p).log()[order][None], phi[order][None], beta - lam)
        assert sorted(order[: int(found.argmax()) + 1].tolist()) == list(best)
        assert float(found.max()) == pytest.approx(every[best], abs=1e-9)


def test_check_7_whitening_and_neighbours() -> None:
    raw = torch.tensor([[1.0, 0], [0, 2], [3, 1], [2, 5]])
    unit = whiten(raw)
    gaps = distances(unit @ unit[0], torch.tensor(False))
    assert gaps[1:].tolist() == pytest.approx((0.614078, 1.017072, 1.992293), abs=5e-7)
    assert raw.tolist() == [[1, 0], [0, 2], [3, 1], [2, 5]]  # as it was
    f = to_set(at_angles(0, 10, 90, 100), [0, 1, 2], neighbours=2)
    assert f == pytest.approx((-0.007596, -0.007596, -0.413176, -0.507596), abs=5e-7)


def test_whitening_of_what_has_no_spread() -> None:
    constant = whiten(torch.tensor([[1.0, 7.0], [2.0, 7.0], [9.0, 7.0]], dtype=torch.bfloat16))
    assert constant.dtype == torch.float32
    assert constant[:, 1].tolist() == [0, 0, 0]
    assert whiten(torch.ones(5, 3)).tolist() == torch.zeros(5, 3).tolist()
    for broken in (torch.ones(3), torch.empty(0, 4), torch.tensor([[1.0, torch.inf], [0.0, 0.0]])):
        with pytest.raises(ValueError, match="embedding matrix"):
            whiten(broken)


METHODS = ("top_p", "min_p", "top_h", "top_n_sigma", "top_w", "greedy")


def test_reference_simulation() -> None:
    """300 steps over 4000 tokens of which four make sense: how likely a sampled token is noise, how many answers of 100
    tokens survive without any, and how even the crop is. Every figure of the reference, to its last digit."""
    rng = np.random.default_rng(0)
    z = np.empty((300, 4000))
    for row in z:
        top = rng.uniform(7, 16)
        row[:] = rng.normal(0, 1.2, 4000)
        row[:4] = top - np.array([0, 0.4, 1, 1.6]) + rng.normal(0, 0.5, 4)
    logits = torch.from_numpy(z)

    def at(temperature: float) -> list[tuple[float, float, float]]:
        scaled = logits / temperature
        hundred = truncation.top_k(scaled, torch.full((300,), 100)).logits  # as in the reference run
        p, m, h, n = (torch.full((300,), value, dtype=torch.float64) for value in (0.9, 0.1, 0.4, 1.0))
        crops = (
            truncation.top_p(scaled, p),
            truncation.min_p(scaled, m),
            truncation.top_h_running(hundred, h),
            truncation.top_n_sigma(scaled, n),
            top_w(scaled, weights(300, geometry=0.0)),
            truncation.top_k(scaled, torch.ones(300, dtype=torch.long)),
        )
        noise = [crop.logits.softmax(-1)[:, 4:].sum(-1) for crop in crops]
        survival = [(100 * (-each).log1p().mean()).exp() for each in noise]
        return [
            (float(share.mean()), float(alive), float(crop.entropy.mean()))
            for share, alive, crop in zip(noise, survival, crops, strict=True)
        ]

    hot, warm, cool = at(2.0), at(1.5), at(0.7)
    assert [row[0] for row in hot] == pytest.approx((0.752, 0.0615, 0.112, 0, 0, 0), abs=5e-4)
    assert hot[METHODS.index("min_p")][0] == pytest.approx(0.0615, abs=5e-5)
    assert [row[1] for row in hot] == pytest.approx((0, 0, 0, 1, 1, 1), abs=5e-4)
    assert [row[2] for row in hot] == pytest.approx((6.67, 1.53, 1.39, 0.94, 0.61, 0), abs=5.1e-3)
    assert [row[1] for row in warm] == pytest.approx((0, 0.461, 0.008, 1, 1, 1), abs=5e-4)
    assert warm[METHODS.index("top_w")][2] == pytest.approx(0.432, abs=5e-4)
    assert cool[METHODS.index("top_w")][2] == pytest.approx(0.194, abs=5e-4)
    # The criteria of the reference for a pass.
    assert hot[METHODS.index("top_w")][1] >= 0.99
    assert hot[METHODS.index("top_w")][2] > 0.3
    assert max(hot[METHODS.index("top_p")][1], hot[METHODS.index("min_p")][1]) < 0.1


def case(seed: int, vocab: int, scale: float, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=vocab) * scale).astype(np.float32), rng.normal(size=(vocab, dim)).astype(np.float32)


cases = {"seed": st.integers(0, 2**32 - 1), "vocab": st.integers(2, 130), "scale": st.floats(0.05, 4)}


@settings(max_examples=150, deadline=None)
@given(
    **cases,
    entropy=st.sampled_from([0.0, 0.4, 1.0, 2.2]),
    mass=st.sampled_from([0.1, 0.4, 1.0, 2.8, 6.0]),
    pool=st.sampled_from([1, 5, 40, 1200]),
    warm_mass=st.sampled_from([0.01, 0.3, 0.8, 0.999, 1.0]),
    iterations=st.sampled_from([1, 2, 9]),
    geometry=st.sampled_from([0.0, 0.6, 5.0]),
    neighbours=st.sampled_from([0, 1, 2, 5]),
    chord=st.booleans(),
    masked=st.booleans(),
)
def test_reference(seed: int, vocab: int, scale: float, masked: bool, **how: Any) -> None:
    z, raw = case(seed, vocab, scale)
    if masked:
        z[np.random.default_rng(seed).random(vocab) < 0.4] = -np.inf
        z[seed % vocab] = scale
    wanted = reference.top_w(
        z,
        reference.whiten(raw),
        how["entropy"],
        how["mass"],
        how["pool"],
        how["warm_mass"],
        how["iterations"],
        how["geometry"],
        "knn" if how["neighbours"] else "nearest",
        how["neighbours"],
        "chord" if how["chord"] else "cosine",
    )
    crop = top_w(torch.from_numpy(z)[None], weights(**how), whiten(torch.from_numpy(raw)))
    assert sets(crop) == [wanted]
    assert crop.kept.tolist() == [len(wanted)]
    q = reference.softmax(z)[sorted(wanted)]
    assert float(crop.entropy) == pytest.approx(reference.entropy(q / q.sum()), abs=1e-4)
    assert int(np.argmax(z)) in wanted


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.02, 4),
    warm_mass=st.sampled_from([0.02, 0.3, 0.9, 0.999]),
    mass=st.sampled_from([2.3, 2.8, 6.0, 30.0]),
    chord=st.booleans(),
)
def test_the_shortcut_is_taken_where_geometry_changes_nothing(
    seed: int, scale: float, warm_mass: float, mass: float, chord: bool
) -> None:
    """If the prefix without geometry is known to be the answer, from few tokens or from all, the alternation over the
    whole pool ends in the same set, for any embeddings and a geometry 83 times as strong."""
    rng = np.random.default_rng(seed)
    vocab = 2 * FIRST_POOL
    logits = torch.from_numpy(rng.normal(size=(6, vocab)) * scale).float()
    geometry = whiten(torch.from_numpy(rng.normal(size=(vocab, 6))).float())
    table = make_table(weights(6, warm_mass=warm_mass, mass=mass, chord=chord), vocab, logits.device)
    own = ParameterTable.of(table)
    logw, ids = ranked(logits)
    n, undecided = without_geometry(logw, own, whole=True)
    few, later = without_geometry(logw[:, :FIRST_POOL], own, whole=False)
    assert not (undecided & ~later).any()
    assert torch.equal(few[~later], n[~later])
    settled = ~undecided[:, 0]
    stronger = table.clone()
    ParameterTable.of(stronger).geometry.mul_(83)
    for embedding, scaled in (
        (geometry, table),
        (geometry[torch.from_numpy(rng.permutation(vocab))], table),
        (geometry, stronger),
    ):
        found = alternate(logw, scaled, ids, *set_sizes(logw, scaled, whole=True), embedding)
        assert [row.nonzero()[:, 0].tolist() for row in found[settled]] == [list(range(k)) for k in n[settled, 0]]


def ranked(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities relative to the first, in descending order, and whose they are."""
    found, ids = logits.topk(logits.shape[-1])
    return (found.double() - found[:, :1]).clamp(min=MIN_LOGPROB), ids


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    neighbours=st.sampled_from([1, 2, 5, 30]),
    pool=st.sampled_from([3, 8, 90, 1200]),
    warm_mass=st.sampled_from([0.02, 0.9, 0.999]),
    mass=st.sampled_from([0.5, 2.2, 2.8, 30.0]),
    geometry=st.sampled_from([0.1, 0.6, 3.0]),
    chord=st.booleans(),
)
def test_the_shortcut_of_one_candidate(seed: int, chord: bool, **how: Any) -> None:
    """If k-NN finds from few tokens that there is one candidate, the alternation over all ends with it, for any
    embeddings: here in two bundles as far apart as can be, so that distances are 0 or 2."""
    rng = np.random.default_rng(seed)
    vocab = 2 * FIRST_POOL
    logits = torch.from_numpy(rng.normal(size=(30, vocab)) * rng.uniform(0.3, 6, (30, 1))).float()
    table = make_table(weights(30, **how, chord=chord), vocab, logits.device)
    logw, ids = ranked(logits)
    own, few = ParameterTable.of(table), (logw[:, :FIRST_POOL], ids[:, :FIRST_POOL])
    for _ in range(4):
        bundles = torch.from_numpy(rng.choice([-1.0, 1.0], (vocab, 1))).float()
        found = alternate(logw, table, ids, *set_sizes(logw, table, whole=True), bundles)
        for top in (potential_floor(own), measured_potential_floor(*few, own, bundles)):
            settled = ~may_keep_more(few[0], own, top, whole=False)[:, 0]
            assert (found[settled].sum(-1) == 1).all()
            assert found[settled, 0].all()


def test_how_often_one_candidate_is_left() -> None:
    """Sharp rows are settled by the shortcut, flat ones are not: it neither never nor always answers; and the distances
    of a few tokens settle more."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(400, 2000, generator=generator)
    geometry = whiten(torch.randn(2000, 8, generator=generator))
    table = make_table(weights(400, neighbours=5), 2000, logits.device)
    own = ParameterTable.of(table)
    for scale, low, high in ((6.0, 0.5, 1.0), (0.5, 0.0, 0.05)):
        logw, ids = (part[:, :FIRST_POOL] for part in ranked(scale * logits))
        far, near = (
            float((~may_keep_more(logw, own, top, whole=False)).double().mean())
            for top in (potential_floor(own), measured_potential_floor(logw, ids, own, geometry))
        )
        assert low <= far <= near <= high
        assert near > far or scale < 1


def test_where_the_geometry_decides_and_where_it_cannot() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(60, 150, generator=generator) * 0.7
    first, second = (whiten(torch.randn(150, 8, generator=generator)) for _ in range(2))

    def kept(embedding: torch.Tensor | None, **options: Any) -> list[set[int]]:
        return sets(top_w(logits, weights(60, **options), embedding))

    assert kept(None) == kept(first) == kept(second)  # the defaults: not even asked for
    for options in ({"warm_mass": 0.05, "geometry": 1.0}, {"neighbours": 5, "geometry": 1.0}):
        assert kept(first, **options) != kept(second, **options)
        with pytest.raises(ValueError, match="embedding matrix"):
            kept(None, **options)


@settings(max_examples=40, deadline=None)
@given(**cases, neighbours=st.sampled_from([0, 3]))
def test_a_permuted_vocabulary(seed: int, vocab: int, scale: float, neighbours: int) -> None:
    z, raw = case(seed, vocab, scale)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(vocab))
    logits, geometry = torch.from_numpy(z)[None], whiten(torch.from_numpy(raw))
    how = weights(neighbours=neighbours, warm_mass=0.3)
    plain = top_w(logits, how, geometry)
    moved = top_w(logits[:, order], how, geometry[order])
    assert torch.equal(plain.logits[:, order], moved.logits)


def test_rows_do_not_know_each_other() -> None:
    """Rows with all kinds of parameters in one batch are what each would be alone, in single and double precision."""
    rng = np.random.default_rng(8)
    rows, vocab = 48, 400
    logits = torch.from_numpy(rng.normal(size=(rows, vocab)) * rng.uniform(0.05, 4, (rows, 1))).float()
    geometry = whiten(torch.from_numpy(rng.normal(size=(vocab, 6))).float())

    def drawn(*values: Any) -> list[Any]:
        return [values[i] for i in rng.integers(len(values), size=rows)]

    how = {
        "entropy": drawn(0.0, 1.0, 2.2),
        "mass": drawn(0.5, 1.0, 2.8),
        "pool": drawn(3, 70, 1200),
        "warm_mass": drawn(0.05, 0.5, 0.999),
        "iterations": drawn(1, 9),
        "geometry": drawn(0.0, 0.6, 5.0),
        "neighbours": drawn(0, 0, 5),
        "chord": drawn(False, True),
        "sharpness": drawn(0.5, 1.0, 2.0),
    }
    together = top_w(logits, weights(rows, **how), geometry)
    for i in range(rows):
        alone = top_w(logits[i : i + 1], weights(**{key: value[i] for key, value in how.items()}), geometry)
        assert torch.equal(alone.logits[0], together.logits[i])
    assert sets(top_w(logits.double(), weights(rows, **how), geometry)) == sets(together)


def test_selection_temperature() -> None:
    """`sharpness` 2 selects as at half the temperature, and leaves the logits at the one they have."""
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(5))
    sharper = top_w(logits, weights(20, sharpness=2.0, geometry=0.0))
    assert sets(sharper) == sets(top_w(2 * logits, weights(20, geometry=0.0)))
    left = sharper.logits > -torch.inf
    assert torch.equal(sharper.logits[left], logits[left])


def test_masked_rows() -> None:
    logits = torch.full((3, 200), -torch.inf)
    logits[0, 5] = 2.0
    logits[1, [7, 9]] = 1.0
    geometry = whiten(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
    for options in ({}, {"neighbours": 5}, {"mass": 1.0, "neighbours": 2}):
        crop = top_w(logits, weights(3, **options), geometry)
        assert sets(crop)[0] == {5}
        assert sets(crop)[1] <= {7, 9}
        assert sets(crop)[2] == set()
